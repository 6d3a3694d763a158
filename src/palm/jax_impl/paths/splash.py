"""Attention by the splash kernel, on TPUs.

Letters: b batch, n sequence, h heads, e dim_head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from palm.jax_impl.norm import widen
from palm.jax_impl.paths.blockwise import blockwise_attention
from palm.jax_impl.shapes import Keys, Queries, Segments, Slopes

LANES = 128
# Queries, and keys, of a block: the kernel's own 128 makes many small steps, and with 1,024 the backward pass
# of float32 does not fit a core's 16 MiB of fast memory. Nor does it where a block of one head takes more.
BLOCK = 512
BLOCK_BYTES = 2**19
# Settings of jax_default_matmul_precision that let products of float32 be rounded to bfloat16 on a TPU.
COARSE = (None, "default", "bfloat16", "BF16_BF16_F32")


def splash_attention(
    q: Queries,
    k: Keys,
    v: Keys,
    slopes: Slopes | None,
    segments: Segments | None = None,
    *,
    interpret: bool = False,
) -> Queries:
    """softmax((q·e^-1/2) kᵀ) v over the keys up to each query, by JAX's splash attention kernel.

    Its multi-query form: the key and value head is read where it is. Of rotary models only; first derivatives
    in reverse mode only; memory is linear in n. Lengths are padded to whole blocks with zeros, which no query
    sees. What the kernel is not given, segments, float64, heads of over 4 KiB, and any dtype in a process
    with `jax_enable_x64`, goes blockwise. `interpret` runs it in Pallas' interpreter, on any device.
    Shapes: q (..., n, h, e), k and v (..., n, e) -> (..., n, h, e).
    """
    assert slopes is None
    n, h, e = q.shape[-3:]
    block = block_of(n, e, q.dtype)
    # With jax_enable_x64 JAX's kernel mixes integers of 32 and 64 bits, which its compiler refuses.
    if block is None or segments is not None or jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        return blockwise_attention(q, k, v, slopes, segments)

    def padded(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, -n % block), *((0, 0),) * (x.ndim - 2)))

    # Rounded once: bfloat16's own e^-1/2 is off by up to a part in 512, the same for all scores.
    scaled = padded((widen(q) * e**-0.5).astype(q.dtype).reshape(-1, n, h, e)).swapaxes(1, 2)
    keys, values = padded(k.reshape(-1, n, e)), padded(v.reshape(-1, n, e))
    attended = _attend(scaled, keys, values, block, kernel_precision(q), interpret)
    return attended[:, :, :n].swapaxes(1, 2).reshape(q.shape)


def block_of(n: int, e: int, dtype: jnp.dtype) -> int | None:
    """Positions of a block, for a TPU; None where a kernel does not take the heads or their dtype."""
    most = min(BLOCK, BLOCK_BYTES // (e * dtype.itemsize) // LANES * LANES)
    return min(most, -(-n // LANES) * LANES) if most and dtype != jnp.float64 else None


def kernel_precision(q: Array) -> str:
    """The TPU's kernel compiler multiplies float32 in full or as bfloat16, and bfloat16 only as such."""
    coarse = q.dtype == jnp.bfloat16 or jax.config.jax_default_matmul_precision in COARSE  # type: ignore[attr-defined]
    return "default" if coarse else "highest"


# The kernel's own rules of differentiation are traced when the caller's `default_matmul_precision` is over;
# so these here hand it on.
@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _attend(q: Array, k: Array, v: Array, block: int, precision: str, interpret: bool) -> Array:
    with jax.default_matmul_precision(precision):
        return _kernel(q, block, interpret)(q, k, v)


def _forward(
    q: Array, k: Array, v: Array, block: int, precision: str, interpret: bool
) -> tuple[Array, Callable[[Array], Any]]:
    with jax.default_matmul_precision(precision):
        return jax.vjp(_kernel(q, block, interpret), q, k, v)


def _backward(
    block: int, precision: str, interpret: bool, pull: Callable[[Array], Any], grad: Array
) -> tuple[Array, Array, Array]:
    with jax.default_matmul_precision(precision):
        return pull(grad)


_attend.defvjp(_forward, _backward)


def _kernel(q: Array, block: int, interpret: bool) -> Callable[[Array, Array, Array], Array]:
    """Causal attention. Shapes: q (b, h, n, e), k and v (b, n, e) -> (b, h, n, e)."""
    # Imported here: Pallas takes a second, and is of no use elsewhere.
    from jax.experimental.pallas.ops.tpu.splash_attention import (  # noqa: PLC0415
        BlockSizes,
        CausalMask,
        MultiHeadMask,
        make_splash_mqa_single_device,
    )

    h, n = q.shape[1:3]
    sizes = BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    mask = MultiHeadMask([CausalMask((n, n))] * h)
    return jax.vmap(make_splash_mqa_single_device(mask, block_sizes=sizes, interpret=interpret))
