"""`resolve` writes out what each backend's original computes."""

import dataclasses
import itertools

import pytest
from cases import ARCHITECTURES, SIZES, architecture_id, assert_explains

from palm import BackendError, ConfigError, PaLMConfig

OPEN = PaLMConfig(**SIZES)
ORIGINALS = {
    "torch": {
        "positions": "alibi",
        "norm": "rmsnorm",
        "share_kv": True,
        "norm_eps": 1e-8,
        "norm_eps_mode": "clamp",
    },
    "jax": {
        "positions": "rotary",
        "norm": "layernorm",
        "share_kv": False,
        "norm_eps": 1e-5,
        "norm_eps_mode": "add",
    },
}
BACKENDS = tuple(ORIGINALS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_open_config_becomes_the_original(backend):
    assert OPEN.resolve(backend) == dataclasses.replace(OPEN, **ORIGINALS[backend])


@pytest.mark.parametrize("backend", BACKENDS)
def test_resolving_again_by_either_backend_changes_nothing(backend):
    resolved = OPEN.resolve(backend)
    assert [resolved.resolve(other) for other in BACKENDS] == [resolved, resolved]


def test_a_config_is_resolved_once_nothing_is_open():
    assert not OPEN.is_resolved
    for backend in BACKENDS:
        assert OPEN.resolve(backend).is_resolved
        for field in ORIGINALS[backend]:
            assert not dataclasses.replace(OPEN.resolve(backend), **{field: None}).is_resolved


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("choices", ARCHITECTURES, ids=architecture_id)
def test_explicit_choices_survive(choices, backend):
    resolved = dataclasses.replace(OPEN, **choices, norm_eps=0.125).resolve(backend)
    assert {name: getattr(resolved, name) for name in choices} == choices
    assert resolved.norm_eps == 0.125


@pytest.mark.parametrize(
    ("backend", "field"), [(b, f) for b, f in itertools.product(BACKENDS, ORIGINALS["torch"])]
)
def test_one_explicit_choice_leaves_the_others_to_the_original(backend, field):
    other = ORIGINALS["jax" if backend == "torch" else "torch"][field]
    resolved = dataclasses.replace(OPEN, **{field: other}).resolve(backend)
    expected = {**ORIGINALS[backend], field: other}
    if field == "norm":  # eps is the norm's published one, not the backend's
        whose = ORIGINALS["jax" if other == "layernorm" else "torch"]
        expected |= {name: whose[name] for name in ("norm_eps", "norm_eps_mode")}
    assert {name: getattr(resolved, name) for name in expected} == expected


def test_an_odd_dim_head_resolves_to_alibi_but_not_to_rotary():
    odd = dataclasses.replace(OPEN, dim_head=5)
    assert odd.resolve("torch").positions == "alibi"
    with pytest.raises(ConfigError) as raised:
        odd.resolve("jax")
    assert_explains(raised, "dim_head must be even", "dim_head=5", "Use 6 or 4")


@pytest.mark.parametrize("backend", ["tensorflow", "Torch", "", None, 0, ["torch"]])
def test_an_unknown_backend_is_refused(backend):
    with pytest.raises(BackendError) as raised:
        OPEN.resolve(backend)
    assert_explains(raised, "backend must be one of torch, jax", f"backend={backend!r}", "Choose one")
