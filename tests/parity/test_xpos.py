"""xPos and norms of queries and keys, in both wings: by rounding only, over thousands of positions."""

import dataclasses

import jax
import numpy as np
import pytest
from cases import draw_weights, small
from support import DTYPES, draw_tokens, pair, read, widened

import palm
from palm.spec import forward, functions
from palm.spec.positions import xpos_table
from palm.spec.rounding import rms

E = 8


def config(**changes) -> palm.PaLMConfig:
    sizes = {"num_tokens": 31, "dim": 16, "depth": 2, "heads": 2, "dim_head": E, "positions": "xpos"}
    return palm.PaLMConfig(**{**sizes, "norm": "layernorm", "share_kv": False, **changes}).resolve("torch")


def turned(cfg, keys):
    def evaluate(wing, x):
        wide = wing.norm.widen(x)
        where = {"device": x.device} if wing.__name__.endswith("torch_impl") else {}
        tables = wing.rotation_tables(cfg, x.shape[-2], dtype=wide.dtype, **where)
        return wing.rotate(x, tables[keys])

    return evaluate


@pytest.mark.sampled(4)
@pytest.mark.parametrize("base", [512.0, 16.0])
@pytest.mark.parametrize("length", [1, 127, 700])
@pytest.mark.parametrize("keys", [False, True], ids=["queries", "keys"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_and_keys_are_stretched_up_to_rounding(dtype, keys, length, base, platform):
    cfg = config(xpos_base=base)
    arrays = [np.random.default_rng(2).standard_normal((2, length, E))]
    reading = read(turned(cfg, keys), arrays, dtype, platform)
    exact = functions.position_step(*widened(arrays, dtype), cfg, keys=keys)
    assert not reading.faults(exact, dtype, roundings=3)


@pytest.mark.parametrize("changes", [{"xpos_base": 300.0}, {"positions": "rotary"}, {"rope_theta": 500.0}])
@pytest.mark.parametrize("dtype", DTYPES)
def test_wrong_xpos_is_caught(dtype, changes, platform):
    cfg = config()
    arrays = [np.random.default_rng(2).standard_normal((400, E))]
    reading = read(turned(cfg, False), arrays, dtype, platform)
    other = functions.position_step(*widened(arrays, dtype), dataclasses.replace(cfg, **changes), keys=False)
    assert reading.faults(other, dtype, roundings=3)


def test_factors_are_those_of_the_paper_and_any_centre_cancels():
    table = xpos_table(8192, 128, 512.0)
    pairs = np.array([(2 * p + 0.4 * 128) / (1.4 * 128) for p in range(64)])
    i, j = 8191, 17
    np.testing.assert_allclose(table[i] / table[j], pairs ** ((i - j) / 512), rtol=1e-13)
    about = pairs ** ((i - 4096) / 512) * pairs ** (-(j - 4096) / 512)
    np.testing.assert_allclose(table[i] / table[j], about, rtol=1e-13)
    assert 1e-9 < table.min() < 3e-9


@pytest.mark.parametrize("qk_norm", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize(
    ("backend", "attention"), [("torch", "sdpa"), ("torch", "textbook"), ("jax", "textbook")]
)
def test_every_path_has_xpos(backend, attention, qk_norm):
    cfg = config(qk_norm=qk_norm, xpos_base=9.0)
    weights, tokens = draw_weights(cfg), draw_tokens(cfg, (2, 40))
    with jax.enable_x64(True):
        model = palm.from_numpy(cfg, weights, backend=backend, attention=attention)
        taps = palm.activations(model, tokens)
    exact = forward.activations(cfg, weights, tokens)
    assert max(rms(taps[name] - exact[name]) / rms(exact[name]) for name in exact) <= 1e-13


@pytest.mark.parametrize("length", [1500, pytest.param(8192, marks=pytest.mark.whole)])
def test_thousands_of_positions_lose_no_more_than_rotary(length):
    """Factors of 2e-9 and 5e8 keep every digit: the error is that of rotary without them."""
    errors = {}
    for positions in ("rotary", "xpos"):
        cfg = config(positions=positions, depth=1)
        tokens = draw_tokens(cfg, (length,))
        with jax.enable_x64(True):
            exact = palm.activations(pair(cfg, "float64", "cpu")[0], tokens)["logits"]
        for model in pair(cfg, "float32", "cpu"):
            logits = palm.activations(model, tokens)["logits"]
            errors[positions, palm.backends.backend_of(model)] = rms(logits - exact) / rms(exact)
    for backend in ("torch", "jax"):
        assert errors["xpos", backend] <= 2 * errors["rotary", backend] <= 1e-5, errors


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_more_positions_than_float32_has_factors_for_are_refused(backend):
    cfg = small(positions="xpos", xpos_base=1.0)
    model = palm.from_numpy(cfg, draw_weights(cfg, dtype="float32"), backend=backend)
    assert np.isfinite(palm.activations(model, np.zeros(48, int))["logits"]).all()
    words = "tokens must have at most 48·xpos_base = 48 positions with xPos"
    for call in (
        lambda: palm.activations(model, np.zeros(49, int)),
        lambda: forward.activations(cfg, draw_weights(cfg), np.zeros(49, int)),
    ):
        with pytest.raises(palm.TokenError, match=words):
            call()


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_head_of_zeros_has_a_finite_gradient_through_its_norm(backend):
    cfg = small(qk_norm=True)
    weights = draw_weights(cfg, dtype="float32")
    weights["blocks.0.attention.query"][:, :4] = 0
    weights["blocks.1.attention.key_value"][:] = 0
    model = palm.from_numpy(cfg, weights, backend=backend)
    loss, grads = palm.value_and_grad(model, draw_tokens(cfg, (2, 9)))
    assert np.isfinite(loss)
    assert all(np.isfinite(gradient).all() for gradient in grads.values())
