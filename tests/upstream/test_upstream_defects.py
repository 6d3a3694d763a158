"""What the originals get wrong and palm must not: each test shows both."""

from __future__ import annotations

import numpy as np
import pytest

import palm
from palm.backends import wing_of
from palm.spec import backward, forward, functions
from palm.upstream.read import from_upstream, read_upstream

JAX = ("palm_jax.palm", "palm_jax.palm_lite")
ROWS = 300  # above 256, bfloat16 cannot hold every whole number


@pytest.mark.parametrize("name", JAX)
def test_one_key_for_every_layer(originals, name, backend):
    import jax

    sizes = {**originals.sizes, **({"max_seq_len": 8} if name == "palm_jax.palm_lite" else {})}
    with originals.quiet():
        original = originals.module(name).PaLM(**sizes, key=jax.random.PRNGKey(0))
    first, second = original.layers
    for matrix in ("wi", "attn_wo", "ff_wo"):
        assert np.array_equal(getattr(first, matrix), getattr(second, matrix))

    config = palm.preset(name, **originals.sizes)
    weights = palm.to_numpy(palm.build(config, backend=backend))
    blocks = [backward.block_arrays(weights, i) for i in range(2)]
    for matrix in blocks[0].keys() - {"norm"}:
        assert not np.any(blocks[0][matrix] == blocks[1][matrix])


def test_alibi_ends_at_max_seq_len(originals, backend):
    name, tokens = "palm_jax.palm_lite", np.arange(9) + 3
    short, long = (originals.build(name, max_seq_len=length) for length in (8, 9))
    with pytest.raises(TypeError, match="incompatible shapes"):
        short.logits(tokens)

    ours = numpy_logits(from_upstream(short.model, name, backend=backend), tokens)
    np.testing.assert_allclose(ours, long.logits(tokens), rtol=0, atol=1e-14)


def test_one_pass_variance(originals, backend):
    """E[x²] − E[x]² in float32 cancels: at a mean of 1000 and a variance of 1 nothing is left of it."""
    module = originals.module("palm_jax.palm")
    x = (1000 + np.random.default_rng(0).standard_normal((5, 256))).astype(np.float32)
    scale = np.ones(256, np.float32)
    config = palm.preset("palm_jax.palm", dim=256, num_tokens=2)
    exact = functions.normalise(x.astype(np.float64), scale, config)

    norm = module.LayerNorm(256)
    theirs = np.asarray(norm(x) * scale, np.float64)
    ours = palm_norm(config, x, backend)
    assert np.abs(ours - exact).max() < 1e-3
    assert not np.abs(theirs - exact).max() < 100 * np.abs(ours - exact).max()  # it may be NaN


@pytest.mark.parametrize("name", JAX)
def test_ids_outside_the_vocabulary(originals, name, backend):
    """The original takes the last token for each of them, and says nothing."""
    original = originals.build(name)
    rows = np.array([[1, 2, token] for token in (28, 29, 1000, -1)])
    last, *strange = original.logits(rows)
    for logits in strange:
        np.testing.assert_array_equal(logits, last)

    model = from_upstream(original.model, name, backend=backend)
    for row in rows[1:]:
        with pytest.raises(palm.TokenError, match=f"token={row[-1]}"):
            numpy_logits(model, row)


def test_alibi_in_bfloat16(originals):
    """Distances rounded to bfloat16: beyond 256, neighbouring keys get one and the same bias."""
    import torch
    from support import bias_of

    name = "palm_pytorch.palm_lite"
    original = originals.build(name).model.bfloat16()
    bias = original[1].fn.alibi_pos_biases(torch.zeros(1, 3, ROWS, ROWS)).double().numpy()
    model = from_upstream(original, name, backend="torch")
    config = palm.config_of(model)
    exact = np.tril(functions.position_bias(ROWS, config))
    assert palm.dtype_of(model) == "bfloat16"
    assert len(np.unique(bias[0, -1])) < ROWS
    assert np.abs(np.tril(bias) - exact).max() >= 0.5 * np.abs(exact[0, 1, 0])

    _, slopes = model.positions(ROWS, torch.zeros(1, dtype=torch.bfloat16))
    ours = bias_of(wing_of(model), slopes, ROWS)
    assert len(torch.unique(ours[0, -1])) == ROWS
    np.testing.assert_array_equal(np.tril(ours.double().numpy()), exact)


def test_rotary_in_bfloat16(originals):
    """Positions counted in bfloat16: beyond 256, neighbouring tokens stand in one and the same place."""
    import torch

    name = "palm_pytorch.palm_pytorch"
    original = originals.build(name).model.bfloat16()
    angles = original[1].fn.get_rotary_embedding(ROWS, torch.device("cpu"))
    assert torch.equal(angles[256], angles[257])

    model = from_upstream(original, name, backend="torch")
    ((cos, sin), _), _ = model.positions(ROWS, torch.zeros(1, dtype=torch.bfloat16))
    frequencies = 10_000.0 ** (-np.arange(5) / 5)
    exact = np.exp(1j * np.outer(np.arange(ROWS), frequencies))
    np.testing.assert_allclose(cos.double() + 1j * sin.double(), exact, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", JAX)
def test_a_second_model_in_one_process(originals, name):
    """Arrays among the static fields have no equality, which jit's cache needs."""
    tokens = np.arange(4)
    one, two = (originals.build(name, seed=seed, depth=1) for seed in (1, 2))
    one.model(tokens)  # by its own jit, which no other test uses
    with pytest.raises(ValueError, match="metadata fields"):
        two.model(tokens)

    for original in (one, two):
        exact = forward.activations(*read_upstream(original.model, name), tokens)["logits"]
        ours = from_upstream(original.model, name, backend="jax")(tokens)
        np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-14)


def numpy_logits(model, tokens):
    return palm.activations(model, tokens)["logits"]


def palm_norm(config, x, backend):
    """One norm of a wing, in x's own precision."""
    if backend == "torch":
        import torch

        from palm.torch_impl import Norm

        with torch.no_grad():
            return Norm(config, device=None, dtype=torch.float32)(torch.from_numpy(x)).double().numpy()
    import jax.numpy as jnp

    from palm.jax_impl import Norm

    return np.asarray(Norm(config, dtype=x.dtype)(jnp.asarray(x)), np.float64)
