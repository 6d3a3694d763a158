"""Configs as dicts and as JSON."""

import copy
import dataclasses
import inspect
import json
import pickle

import pytest
from cases import SIZES, assert_explains, small
from hypothesis import given, settings
from hypothesis import strategies as st

from palm import ConfigError, PaLMConfig

size = st.integers(1, 10**6)
configs = st.builds(
    PaLMConfig,
    num_tokens=size,
    dim=size,
    depth=size,
    heads=size,
    dim_head=size.map(lambda half: 2 * half),
    ff_mult=size,
    positions=st.sampled_from(["alibi", "rotary", None]),
    norm=st.sampled_from(["rmsnorm", "layernorm", None]),
    share_kv=st.sampled_from([True, False, None]),
    norm_eps=st.none() | st.floats(1e-17, 1e3),
    norm_eps_mode=st.sampled_from(["clamp", "add", None]),
    rope_theta=st.floats(1.5, 1e9),
    tie_embeddings=st.booleans(),
    init=st.sampled_from(["paper", "reference"]),
)


@given(configs)
@settings(max_examples=100)
def test_json_and_back_is_the_same_config(config):
    again = PaLMConfig.from_json(config.to_json())
    assert again == config
    assert again.to_json() == config.to_json()


@given(configs)
@settings(max_examples=50)
def test_a_dict_and_back_is_the_same_config(config):
    assert PaLMConfig.from_dict(config.to_dict()) == config


def test_json_holds_every_field_under_its_name():
    config = small(qk_norm=True, xpos_base=256.0)
    assert json.loads(config.to_json()) == {name: getattr(config, name) for name in config.to_dict()}
    assert set(config.to_dict()) == set(PaLMConfig.__dataclass_fields__)


def test_json_is_what_version_0_1_0_reads_if_it_knows_such_a_model():
    later = set(json.loads(small(qk_norm=True, xpos_base=256.0).to_json()))
    assert later - set(json.loads(small().to_json())) == {"qk_norm", "xpos_base"}
    assert PaLMConfig.from_json(small().to_json()) == small()


def test_fields_with_a_default_may_be_missing():
    fields = {"num_tokens": 256, "dim": 64, "depth": 3}
    assert PaLMConfig.from_json(json.dumps(fields)) == PaLMConfig(**fields)


# As JSON has the fields, and as the constructor takes them.
MAKERS = pytest.mark.parametrize("make", [PaLMConfig.from_dict, lambda fields: PaLMConfig(**fields)])


@MAKERS
def test_an_unknown_field_is_named_with_those_that_are_known(make):
    with pytest.raises(ConfigError) as raised:
        make({**SIZES, "n_heads": 8})
    assert_explains(raised, "n_heads=8", "Did you mean heads?", "Known fields: num_tokens, dim,", "init")


@MAKERS
def test_missing_fields_are_named_together(make):
    with pytest.raises(ConfigError) as raised:
        make({"dim": 64})
    assert_explains(raised, "must name num_tokens, depth;", "got dim.", "Add")


def test_the_constructor_is_the_dataclasss_own_otherwise():
    config = small()
    assert list(inspect.signature(PaLMConfig).parameters) == list(PaLMConfig.__dataclass_fields__)
    for again in (dataclasses.replace(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert again == config
    with pytest.raises(ConfigError, match="a config must have only known fields; got width=8"):
        dataclasses.replace(config, width=8)
    with pytest.raises(TypeError, match="positional"):
        PaLMConfig(13)


def test_an_invariant_holds_on_the_way_in_too():
    with pytest.raises(
        ConfigError, match=r"norm_eps must be a number above 1e-18 and below 1e\+18; got norm_eps=nan"
    ):
        PaLMConfig.from_json(json.dumps({**SIZES, "norm_eps": float("nan")}))


@pytest.mark.parametrize(
    ("text", "kind"),
    [("[]", "list"), ("3", "int"), ('"tiny"', "str"), ("null", "NoneType"), ("true", "bool")],
)
def test_json_that_is_no_object_is_refused(text, kind):
    with pytest.raises(ConfigError) as raised:
        PaLMConfig.from_json(text)
    assert_explains(raised, "must be a JSON object", f"got {kind}", "Use to_json()")


@pytest.mark.parametrize("text", ["", "{", "{'dim': 3}", '{"dim": 3,}', "dim: 3", '{"dim": 3} x'])
def test_broken_json_is_refused(text):
    with pytest.raises(ConfigError) as raised:
        PaLMConfig.from_json(text)
    assert_explains(raised, "must be valid JSON", "Write it with to_json()")


def test_json_nested_too_deeply_is_refused():
    with pytest.raises(ConfigError, match="must be valid JSON"):
        PaLMConfig.from_json("[" * 100_000)


def test_a_field_given_twice_is_refused():
    with pytest.raises(ConfigError, match="dim"):
        PaLMConfig.from_json('{"num_tokens": 256, "dim": 64, "dim": 32, "depth": 1}')
