"""Every invariant of the config, and how its error explains itself."""

import dataclasses
import math

import numpy as np
import pytest
from cases import SIZES, assert_explains

from palm import ConfigError, PaLMConfig, PalmError

INTEGER_FIELDS = ("num_tokens", "dim", "depth", "heads", "dim_head", "ff_mult")
CHOICE_FIELDS = {
    "positions": "alibi, rotary",
    "norm": "rmsnorm, layernorm",
    "norm_eps_mode": "clamp, add",
    "init": "paper, reference",
}


@pytest.mark.parametrize("value", [True, False, 0, -1, 2.0, 1.5, math.nan, "8", None, [8]])
@pytest.mark.parametrize("field", INTEGER_FIELDS)
def test_a_size_must_be_a_whole_number_of_at_least_one(field, value):
    with pytest.raises(ConfigError) as raised:
        PaLMConfig(**{**SIZES, field: value})
    assert_explains(raised, f"{field} must", "at least 1", f"{field}={value!r}", "Use an int")


@pytest.mark.parametrize("field", INTEGER_FIELDS)
def test_a_size_of_one_is_allowed(field):
    assert getattr(PaLMConfig(**{**SIZES, field: 1}), field) == 1


@pytest.mark.parametrize("field", INTEGER_FIELDS)
def test_numpy_integers_become_plain_ones(field):
    assert type(getattr(PaLMConfig(**{**SIZES, field: np.int32(2)}), field)) is int


@pytest.mark.parametrize("value", ["sinusoidal", "Alibi", "", 1, True, ["alibi"]])
@pytest.mark.parametrize("field", CHOICE_FIELDS)
def test_a_choice_must_be_one_of_those_listed(field, value):
    with pytest.raises(ConfigError) as raised:
        PaLMConfig(**SIZES, **{field: value})
    assert_explains(raised, f"{field} must", CHOICE_FIELDS[field], f"{field}={value!r}", "Choose one")


def test_init_cannot_be_left_open():
    with pytest.raises(ConfigError, match="init must be one of paper, reference; got init=None"):
        PaLMConfig(**SIZES, init=None)


@pytest.mark.parametrize("value", [1, 0, "yes", np.True_, 1.0])
@pytest.mark.parametrize("field", ["share_kv", "tie_embeddings"])
def test_a_switch_must_be_a_bool(field, value):
    with pytest.raises(ConfigError) as raised:
        PaLMConfig(**SIZES, **{field: value})
    assert_explains(raised, f"{field} must", f"{field}={value!r}", "Use True or False")


def test_only_the_switch_that_an_original_decides_can_be_left_open():
    assert PaLMConfig(**SIZES, share_kv=None).share_kv is None
    with pytest.raises(ConfigError, match="tie_embeddings must be true or false; got tie_embeddings=None"):
        PaLMConfig(**SIZES, tie_embeddings=None)


# Below 1e-18 the square that "clamp" needs is no normal float32; θ ≤ 1 turns no frequency.
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("norm_eps", value) for value in (0, 0.0, -1e-5, 1e-18, 1e-30)),
        *(("rope_theta", value) for value in (1, 1.0, 0.5, 0, -10_000.0, None)),
        *(
            (field, value)
            for field in ("norm_eps", "rope_theta")
            for value in (math.nan, math.inf, -math.inf, True, "1e-5", 1j)
        ),
    ],
)
def test_a_number_must_be_finite_and_large_enough(field, value):
    with pytest.raises(ConfigError) as raised:
        PaLMConfig(**SIZES, **{field: value})
    assert_explains(raised, f"{field} must be a number above", f"{field}={value!r}", "Use one in between")


@pytest.mark.parametrize("field", ["norm_eps", "rope_theta"])
def test_a_number_becomes_a_float(field):
    for value in (2, np.float64(2)):
        assert type(getattr(PaLMConfig(**SIZES, **{field: value}), field)) is float


@pytest.mark.parametrize(("dim_head", "fix"), [(1, "Use 2."), (7, "Use 8 or 6.")])
def test_rotary_needs_an_even_dim_head(dim_head, fix):
    with pytest.raises(ConfigError) as raised:
        PaLMConfig(**{**SIZES, "dim_head": dim_head, "positions": "rotary"})
    assert_explains(raised, "dim_head must be even", f"dim_head={dim_head}", fix)


@pytest.mark.parametrize("positions", ["alibi", None])
def test_without_rotary_an_odd_dim_head_is_allowed(positions):
    assert PaLMConfig(**{**SIZES, "dim_head": 7, "positions": positions}).dim_head == 7


def test_a_config_is_frozen():
    config = PaLMConfig(**SIZES)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dim = 8


def test_fields_are_given_by_name_only():
    with pytest.raises(TypeError):
        PaLMConfig(256, 64, 3)


def test_equal_configs_have_equal_hashes():
    a = PaLMConfig(**SIZES, norm_eps=1, rope_theta=10_000)
    b = PaLMConfig(**{**SIZES, "dim": np.int64(SIZES["dim"])}, norm_eps=1.0)
    assert a == b
    assert hash(a) == hash(b)
    assert a != dataclasses.replace(a, norm_eps=2.0)


def test_derived_widths_and_the_logit_scale():
    config = PaLMConfig(num_tokens=10, dim=16, depth=1, heads=3, dim_head=5, ff_mult=2)
    assert (config.inner_dim, config.ff_dim, config.logit_scale) == (15, 32, 0.25)
    assert dataclasses.replace(config, init="reference").logit_scale == 1.0


def test_a_config_error_is_a_value_error_and_a_palm_error():
    assert issubclass(ConfigError, PalmError)
    assert issubclass(ConfigError, ValueError)


@pytest.mark.parametrize("field", ["norm_eps", "rope_theta"])
def test_a_number_too_large_for_a_float_is_refused(field):
    with pytest.raises(ConfigError, match=f"{field} must be a number above"):
        PaLMConfig(**SIZES, **{field: 10**400})


def test_an_eps_whose_square_is_infinite_in_float32_is_refused():
    with pytest.raises(ConfigError, match="norm_eps must be"):
        PaLMConfig(**SIZES, norm_eps=1e20)
