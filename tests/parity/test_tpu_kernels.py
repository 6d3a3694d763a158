"""The kernels for TPUs, in Pallas' interpreter: output and gradients, against the textbook in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention as splash_kernels
from support import widened

import palm
from palm.jax_impl import alibi_slopes
from palm.jax_impl.paths import pallas_attention, pallas_kernels, splash, splash_attention, textbook_attention
from palm.spec.parameters import numpy_dtype
from palm.spec.rounding import UNIT_ROUNDOFF, rms

NAMES = ("attention", "gradient of q", "gradient of k", "gradient of v")
# What rounding of that dtype may leave, in units of its roundoff; the textbook itself leaves up to 20 in
# float32. The kernels round scaled queries and, in the backward pass, weights to bfloat16.
BARS = {"float32": 30.0, "bfloat16": 2.5}
KERNELS = {"splash": splash_attention, "pallas": pallas_attention, "pallas, ALiBi": pallas_attention}


def slopes_of(kernel: str, heads: int) -> Any:
    config = palm.preset("tiny", heads=heads, positions="alibi")
    return alibi_slopes(config, dtype=jnp.float32) if kernel.endswith("ALiBi") else None


def interpreted(kernel: str, q: Any, k: Any, v: Any) -> Any:
    return KERNELS[kernel](q, k, v, slopes_of(kernel, q.shape[2]), interpret=True)


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


def faults(
    kernel: str, arrays: list[np.ndarray], dtype: str, attend: Callable[..., Any] = interpreted
) -> list[str]:
    """What is further from the textbook in float64 than rounding leaves."""
    got = results(partial(attend, kernel), [x.astype(numpy_dtype(dtype)) for x in arrays])
    slopes = slopes_of(kernel, arrays[0].shape[2])
    with jax.enable_x64(True):
        exact = results(lambda q, k, v: textbook_attention(q, k, v, slopes), widened(arrays, dtype))
    errors = [rms(a - b) / rms(b) / UNIT_ROUNDOFF[dtype] for a, b in zip(got, exact, strict=True)]
    return [name for name, error in zip(NAMES, errors, strict=True) if not error <= BARS[dtype]]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("n", "heads"), [(128, 1), (128, 8), (256, 3), (256, 8)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_differs_from_the_textbook_by_rounding_only(kernel, n, heads):
    assert faults(kernel, inputs(n, heads, 128), "float32") == []


@pytest.mark.whole
@pytest.mark.parametrize(("n", "heads", "e", "dtype"), [(300, 3, 128, "float32"), (300, 2, 10, "bfloat16")])
@pytest.mark.parametrize("kernel", KERNELS)
def test_so_do_several_blocks_and_what_does_not_fill_them(kernel, n, heads, e, dtype, monkeypatch):
    monkeypatch.setattr(splash, "BLOCK", 128)
    assert faults(kernel, inputs(n, heads, e), dtype) == []


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kernel", KERNELS)
def test_one_token_alone_is_its_value(kernel):
    q, k, v, _ = (x[:, :1].astype(np.float32) for x in inputs(128, 3, 128))
    found = jax.jit(partial(interpreted, kernel))(q, k, v)
    np.testing.assert_array_equal(found, np.broadcast_to(v[:, :, None], q.shape))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_wrong_scale_is_caught(kernel, dtype):
    def unscaled(kernel, q, k, v):
        return interpreted(kernel, q * q.shape[-1] ** 0.5, k, v)

    assert faults(kernel, inputs(128, 3, 128), dtype, unscaled) == list(NAMES)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("mask", [splash_kernels.FullMask, partial(splash_kernels.CausalMask, offset=1)])
def test_a_wrong_mask_of_the_splash_kernel_is_caught(mask, monkeypatch):
    monkeypatch.setattr(splash_kernels, "CausalMask", mask)
    assert faults("splash", inputs(128, 3, 128), "float32") == list(NAMES)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kernel", ["pallas", "pallas, ALiBi"])
def test_a_wrong_mask_of_our_kernels_is_caught(kernel, monkeypatch):
    right = pallas_kernels._scores

    def one_ahead(q, k, slope, i, j, scale):
        return jnp.roll(right(q, k, slope, i, j, scale), 1, axis=0)

    monkeypatch.setattr(pallas_kernels, "_scores", one_ahead)
    assert faults(kernel, inputs(128, 3, 128), "float32") == list(NAMES)


@pytest.mark.whole
@pytest.mark.parametrize("dtype", BARS)
def test_a_slope_a_hundredth_off_is_caught_in_float32_and_none_at_all_in_both(dtype):
    def flat(kernel, q, k, v):
        return pallas_attention(q, k, v, None, interpret=True)

    def steeper(kernel, q, k, v):
        return pallas_attention(q, k, v, slopes_of(kernel, 3) * 1.01, interpret=True)

    arrays = inputs(256, 3, 128)
    assert faults("pallas, ALiBi", arrays, dtype, flat) == list(NAMES)
    if dtype == "float32":
        assert faults("pallas, ALiBi", arrays, dtype, steeper) == list(NAMES)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("x64", [False, True])
def test_what_a_tpu_would_run_can_be_written_in_its_language_whatever_x64_is(x64, kernel, dtype):
    """Asked of JAX's lowering, which needs no TPU."""
    with jax.enable_x64(x64):
        q, k, v, _ = (jnp.asarray(x, dtype) for x in inputs(300, 3, 64))

        def loss(q: Any, k: Any, v: Any) -> Any:
            return KERNELS[kernel](q, k, v, slopes_of(kernel, 3)).astype(jnp.float32).sum()

        program = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, v).lower(lowering_platforms=("tpu",))
    has_kernel = "tpu_custom_call" in program.as_text()
    assert has_kernel == (not x64 or kernel != "splash")  # with x64 it goes blockwise


@pytest.mark.whole
def test_alibi_distance_is_exact_in_bfloat16():
    """Queries and keys of zero leave ALiBi alone, and values that mark the first keys show their weights."""
    n, slope, shown = 700, 1 / 64, 16
    flat, marks = jnp.zeros((1, n, 1, shown), jnp.bfloat16), jnp.eye(n, shown, dtype=jnp.bfloat16)[None]
    found = pallas_attention(flat, flat[:, :, 0], marks, jnp.asarray([slope]), interpret=True)[0, -1, 0]

    def error(distance: np.ndarray) -> float:
        weights = np.exp(-slope * distance)
        exact = (weights / weights.sum())[:shown]
        return float(np.abs(np.asarray(found, np.float64) / exact - 1).max() / UNIT_ROUNDOFF["bfloat16"])

    distance = np.arange(n - 1, -1, -1)
    assert error(distance) <= 3
    assert error(distance.astype(numpy_dtype("bfloat16")).astype(np.float64)) > 6  # as if not


@pytest.mark.sampled(1)
@pytest.mark.parametrize("attend", [splash_attention, pallas_attention])
def test_what_a_kernel_does_not_take_goes_blockwise(attend):
    """Neither is interpreted here, and the kernels cannot run on a CPU."""
    with jax.enable_x64(True):
        wide = [x.astype(np.float64) for x in inputs(128, 2, 4)[:3]]
        assert attend(*map(jnp.asarray, wide), None).dtype == jnp.float64
    huge = [jnp.zeros(shape, jnp.float32) for shape in ((2, 1, 2048), (2, 2048), (2, 2048))]
    assert attend(*huge, None).shape == (2, 1, 2048)
    with pytest.raises(ValueError, match="interpret mode"):
        attend(*(x[..., :1024] for x in huge), None)
