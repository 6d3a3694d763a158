"""Attention by palm's own kernels, on TPUs: ALiBi or not.

Letters: b batch, n sequence, h heads, e dim_head.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from palm.jax_impl.norm import widen
from palm.jax_impl.paths.blockwise import blockwise_attention
from palm.jax_impl.paths.splash import block_of, kernel_precision
from palm.jax_impl.shapes import Keys, Queries, Segments, Slopes

Saved = tuple[Array, ...]


def pallas_attention(
    q: Queries,
    k: Keys,
    v: Keys,
    slopes: Slopes | None,
    segments: Segments | None = None,
    *,
    interpret: bool = False,
) -> Queries:
    """`textbook_attention` by kernels that form ALiBi's term where they need it, in float32.

    The key and value head is read where it is, for all query heads; a block of keys after the queries is not
    read at all. First derivatives in reverse mode only, and none of the slopes, which are constants; memory
    is linear in n. Lengths are padded to whole blocks with zeros, which no query sees. What the kernels do
    not take, segments, float64 and heads of over 4 KiB, goes blockwise. `interpret` runs them in Pallas'
    interpreter, on any device.
    Shapes: q (..., n, h, e), k and v (..., n, e), slopes (h,) -> (..., n, h, e).
    """
    n, h, e = q.shape[-3:]
    block = block_of(n, e, q.dtype)
    if block is None or segments is not None:
        return blockwise_attention(q, k, v, slopes, segments)

    def padded(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, -n % block), *((0, 0),) * (x.ndim - 2)))

    queries = padded(q.reshape(-1, n, h, e)).swapaxes(1, 2)
    keys, values = padded(k.reshape(-1, n, e)), padded(v.reshape(-1, n, e))
    steep = jnp.zeros(h, jnp.float32) if slopes is None else slopes
    options = (block, kernel_precision(q), interpret)
    attended = _attend(queries, keys, values, steep, options)
    return attended[:, :, :n].swapaxes(1, 2).reshape(q.shape)


# The rules are traced when the caller's `jax.default_matmul_precision` is over, so it is handed on to them.
@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: Array, k: Array, v: Array, slopes: Array, options: tuple[int, str, bool]) -> Array:
    return _forward(q, k, v, slopes, options)[0]


def _forward(
    q: Array, k: Array, v: Array, slopes: Array, options: tuple[int, str, bool]
) -> tuple[Array, Saved]:
    out, log_sums = _run("attend", options, slopes, q, k, v)
    # Not (…, n, 1): a TPU keeps 128 numbers for each of them.
    return out, (q, k, v, slopes, out, log_sums[..., 0])


def _backward(options: tuple[int, str, bool], saved: Saved, grad: Array) -> Saved:
    q, k, v, slopes, out, log_sums = saved
    # Of softmax's gradient w · (g − Σ w g), the sum: it is that of out · grad.
    means = (widen(out) * widen(grad)).sum(-1)
    arrays = (slopes, q, k, v, grad, log_sums[..., None], means[..., None])
    for_q = _run("gradient_of_queries", options, *arrays)
    return for_q, *_run("gradients_of_keys", options, *arrays), jnp.zeros_like(slopes)


_attend.defvjp(_forward, _backward)


def _run(kernel: str, options: tuple[int, str, bool], *arrays: Array) -> Any:
    # Imported here: Pallas takes a second, and is of no use elsewhere.
    from palm.jax_impl.paths import pallas_kernels  # noqa: PLC0415

    block, precision, interpret = options
    scale = arrays[1].shape[-1] ** -0.5
    with jax.default_matmul_precision(precision):
        return getattr(pallas_kernels, kernel)(*arrays, block=block, scale=scale, interpret=interpret)
