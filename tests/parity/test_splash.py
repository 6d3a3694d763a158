"""The splash kernel, in Pallas' interpreter: forward pass and gradients, against the textbook in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention as kernels
from support import widened

from palm.jax_impl.paths import splash, splash_attention, textbook_attention
from palm.params import numpy_dtype
from palm.rounding import UNIT_ROUNDOFF, rms

NAMES = ("attention", "gradient of q", "gradient of k", "gradient of v")
# What rounding of that dtype may leave, in units of its roundoff; the textbook itself leaves up to 20 in
# float32. The kernel rounds scaled queries and, in the backward pass, weights to bfloat16.
BARS = {"float32": 30.0, "bfloat16": 2.5}


def interpreted(q: Any, k: Any, v: Any) -> Any:
    return splash_attention(q, k, v, None, interpret=True)


def inputs(n: int, heads: int, e: int) -> list[np.ndarray]:
    """q, k, v, and the gradient that arrives at the attention."""
    rng = np.random.default_rng(1000 * heads + n)
    shapes = [(2, n, heads, e), (2, n, e), (2, n, e), (2, n, heads, e)]
    return [scale * rng.standard_normal(shape) for scale, shape in zip((2, 1, 1, 1), shapes, strict=True)]


def results(attend: Callable[..., Any], arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Attention, and the gradients with respect to q, k and v, in the arrays' own dtype."""

    @jax.jit
    def run(q, k, v, ahead):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(ahead)

    return [np.asarray(result).astype(np.float64) for result in run(*map(jnp.asarray, arrays))]


def faults(attend: Callable[..., Any], arrays: list[np.ndarray], dtype: str) -> list[str]:
    """What is further from the textbook in float64 than rounding leaves."""
    got = results(attend, [x.astype(numpy_dtype(dtype)) for x in arrays])
    with jax.enable_x64(True):
        exact = results(lambda q, k, v: textbook_attention(q, k, v, None), widened(arrays, dtype))
    errors = [rms(a - b) / rms(b) / UNIT_ROUNDOFF[dtype] for a, b in zip(got, exact, strict=True)]
    return [name for name, error in zip(NAMES, errors, strict=True) if not error <= BARS[dtype]]


@pytest.mark.parametrize(("n", "heads"), [(128, 1), (128, 8), (256, 3), (256, 8)])
def test_the_kernel_differs_from_the_textbook_by_rounding_only(n, heads):
    assert faults(interpreted, inputs(n, heads, 128), "float32") == []


@pytest.mark.parametrize(("n", "heads", "e", "dtype"), [(300, 3, 128, "float32"), (300, 2, 10, "bfloat16")])
def test_so_do_several_blocks_and_what_does_not_fill_them(n, heads, e, dtype, monkeypatch):
    monkeypatch.setattr(splash, "BLOCK", 128)
    assert faults(interpreted, inputs(n, heads, e), dtype) == []


def test_one_token_alone_is_its_value():
    q, k, v, _ = (x[:, :1].astype(np.float32) for x in inputs(128, 3, 128))
    np.testing.assert_array_equal(jax.jit(interpreted)(q, k, v), np.broadcast_to(v[:, :, None], q.shape))


@pytest.mark.parametrize("dtype", BARS)
def test_a_wrong_scale_is_caught(dtype):
    def unscaled(q, k, v):
        return interpreted(q * q.shape[-1] ** 0.5, k, v)

    assert faults(unscaled, inputs(128, 3, 128), dtype) == list(NAMES)


@pytest.mark.parametrize("mask", [kernels.FullMask, partial(kernels.CausalMask, offset=1)])
def test_a_wrong_mask_is_caught(mask, monkeypatch):
    monkeypatch.setattr(kernels, "CausalMask", mask)
    assert faults(interpreted, inputs(128, 3, 128), "float32") == list(NAMES)


def test_what_the_kernel_does_not_take_goes_blockwise():
    """Neither is interpreted here, and the kernel cannot run on a CPU."""
    with jax.enable_x64(True):
        wide = [x.astype(np.float64) for x in inputs(128, 2, 4)[:3]]
        assert splash_attention(*map(jnp.asarray, wide), None).dtype == jnp.float64
    huge = [jnp.zeros(shape, jnp.float32) for shape in ((2, 1, 2048), (2, 2048), (2, 2048))]
    assert splash_attention(*huge, None).shape == (2, 1, 2048)
    with pytest.raises(ValueError, match="interpret mode"):
        splash_attention(*(x[..., :1024] for x in huge), None)
