"""The whole model, forward and backward, in both wings against the referee."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from cases import draw_weights
from hypothesis import given
from hypothesis import strategies as st
from support import draw_tokens, pair

import palm
from palm.spec import backward, forward
from palm.spec.rounding import rms

COMBINATIONS = list(
    itertools.product(
        ("alibi", "rotary"),
        ("rmsnorm", "layernorm"),
        (True, False),  # share_kv
        (True, False),  # tie_embeddings
        ("clamp", "add"),
        ("paper", "reference"),
    )
)
# What the originals of these choices do not have: xPos, and norms of queries and keys, with each of them.
COMBINATIONS += [
    (positions, *COMBINATIONS[5 * i][1:], normed)
    for i, (positions, normed) in enumerate(
        itertools.product(("xpos", "rotary", "alibi"), (True, False, True, False))
    )
    if positions == "xpos" or normed
]


def combination(positions, norm, share_kv, tied, mode, init, qk_norm=False, **sizes) -> palm.PaLMConfig:
    plain = palm.PaLMConfig(
        **{"num_tokens": 37, "dim": 20, "depth": 2, "heads": 3, "dim_head": 6, "ff_mult": 2} | sizes,
        positions=positions,
        norm=norm,
        share_kv=share_kv,
        tie_embeddings=tied,
        norm_eps_mode=mode,
        init=init,
        qk_norm=qk_norm,
        xpos_base=7.0,
    )
    return plain.resolve("torch")


def relative(value: np.ndarray, exact: np.ndarray) -> float:
    return rms(value - exact) / (rms(exact) or 1.0)


def name_of(choices: tuple) -> str:
    return "-".join(map(str, choices))


@pytest.mark.sampled(7)
@pytest.mark.parametrize("choices", COMBINATIONS, ids=name_of)
def test_every_combination_meets_the_referee_and_is_causal_in_float64(choices, platform):
    cfg = combination(*choices)
    tokens = draw_tokens(cfg, (2, 11))
    exact = forward.activations(cfg, draw_weights(cfg, 0), tokens)
    later = tokens.copy()
    later[:, 7] = (later[:, 7] + 1) % cfg.num_tokens
    with jax.enable_x64(True):
        for model in pair(cfg, "float64", platform):
            taps = palm.activations(model, tokens)
            assert list(taps) == list(exact)
            assert max(relative(taps[name], exact[name]) for name in exact) <= 1e-13
            before, after = taps["logits"], palm.activations(model, later)["logits"]
            np.testing.assert_array_equal(before[:, :7], after[:, :7])
            assert (before[:, 7:] != after[:, 7:]).any(-1).all()


# Each combination of the other choices once, the two kinds of `init` in turn.
@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    "choices", [c for i, c in enumerate(COMBINATIONS) if i % 2 == (i // 2) % 2], ids=name_of
)
def test_float64_gradients_of_every_combination(choices, platform):
    cfg = combination(*choices)
    tokens = draw_tokens(cfg, (2, 11))
    loss, grads = backward.value_and_grad(cfg, draw_weights(cfg, 0), tokens)
    with jax.enable_x64(True):
        found = [palm.value_and_grad(model, tokens) for model in pair(cfg, "float64", platform)]
    for own_loss, own_grads in found:
        assert abs(own_loss - loss) <= 1e-13 * loss
        assert list(own_grads) == list(grads)
        assert max(relative(own_grads[name], grads[name]) for name in grads) <= 1e-12
    (_, by_torch), (_, by_jax) = found
    assert max(relative(by_torch[name], by_jax[name]) for name in grads) <= 1e-12


# Architectures, head counts, batch dimensions and lengths spread over one another.
GRID = [
    (combination("alibi", "rmsnorm", True, True, "clamp", "paper", heads=1, dim_head=10), (127,)),
    (combination("rotary", "layernorm", False, True, "add", "paper", heads=6, dim_head=4), (1, 2, 33)),
    (
        combination("alibi", "layernorm", False, False, "add", "reference", heads=12, dim_head=3, depth=5),
        (3, 2),
    ),
    (combination("rotary", "rmsnorm", True, False, "clamp", "paper", heads=8, dim_head=8, dim=64), (300,)),
    (combination("xpos", "layernorm", False, True, "add", "reference", True, heads=5, dim=32), (2, 90)),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("cfg", "shape"), GRID, ids=lambda x: x if isinstance(x, tuple) else x.positions)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_models_differ_by_rounding_only(dtype, cfg, shape, platform):
    tokens = draw_tokens(cfg, shape)
    found = palm.compare(*pair(cfg, dtype, platform), tokens)
    assert found.agree, found.verdict


def test_logits_of_a_single_token(platform):
    cfg, _ = GRID[0]
    tokens = draw_tokens(cfg, (1,))
    exact = forward.activations(cfg, draw_weights(cfg, 0), tokens)["logits"]
    with jax.enable_x64(True):
        for model in pair(cfg, "float64", platform):
            assert relative(palm.activations(model, tokens)["logits"], exact) <= 1e-13


@pytest.mark.whole
@given(data=st.data())
def test_any_config_differs_by_rounding_only(data, platform):
    draw = data.draw
    cfg = combination(
        *draw(st.sampled_from(COMBINATIONS)),
        num_tokens=draw(st.integers(2, 80)),
        dim=draw(st.integers(1, 48)),
        depth=draw(st.integers(1, 4)),
        heads=draw(st.integers(1, 13)),
        dim_head=2 * draw(st.integers(1, 10)),
        ff_mult=draw(st.integers(1, 4)),
    )
    seed = draw(st.integers(0, 99))
    tokens = draw_tokens(cfg, (draw(st.integers(1, 3)), draw(st.integers(2, 40))), seed)
    dtype = draw(st.sampled_from(["float32", "bfloat16"]))
    found = palm.compare(*pair(cfg, dtype, platform, seed), tokens)
    assert found.agree, found.verdict


@pytest.mark.whole
def test_attention_paths_are_one_function(platform):
    cfg = dataclasses.replace(GRID[0][0], heads=3)
    blockwise, _ = pair(cfg, "float32", platform, attention="blockwise")
    _, textbook = pair(cfg, "float32", platform, attention="textbook")
    found = palm.compare(blockwise, textbook, draw_tokens(cfg, (2, 33)))
    assert found.agree, found.verdict


@pytest.mark.whole
@pytest.mark.parametrize(
    "changes", [{"dim": 2, "norm": "layernorm"}, {"dim": 1}, {"positions": "rotary"}], ids=str
)
def test_gradients_that_cancel_are_no_false_alarm(changes, platform):
    sizes = {"num_tokens": 23, "dim": 32, "depth": 2, "heads": 3, "dim_head": 6, "tie_embeddings": False}
    cfg = palm.PaLMConfig(**sizes | changes).resolve("torch")
    # A constant text: attention averages equal values, and what queries and keys are does not matter.
    found = palm.compare(*pair(cfg, "float32", platform), np.full((1, 16), 5))
    assert found.agree, found.verdict


@pytest.mark.whole
def test_a_large_vocabulary_is_no_false_alarm(platform):
    cfg = palm.PaLMConfig(num_tokens=30_000, dim=8, depth=1, heads=2, dim_head=4).resolve("jax")
    found = palm.compare(*pair(cfg, "float32", platform), draw_tokens(cfg, (2, 64)))
    assert found.agree, found.verdict
