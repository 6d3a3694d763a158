"""Attention by the splash kernel, on TPUs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from palm.jax_impl.paths.blockwise import blockwise_attention

LANES = 128


def splash_attention(q: Array, k: Array, v: Array, slopes: Array | None) -> Array:
    """`textbook_attention` by JAX's splash attention kernel, multi-query form; of rotary models.

    What the kernel does not take, float64 and lengths or head widths that do not fill its lanes of 128, goes
    blockwise. Shapes: q (..., n, h, e), k and v (..., n, e) -> (..., n, h, e).
    """
    assert slopes is None
    n, h, e = q.shape[-3:]
    if q.dtype == jnp.float64 or n % LANES or e % LANES:
        return blockwise_attention(q, k, v, slopes)
    # Imported here: Pallas takes a second, and is of no use elsewhere.
    from jax.experimental.pallas.ops.tpu.splash_attention import (  # noqa: PLC0415
        splash_attention_kernel,
        splash_attention_mask,
    )

    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((n, n))] * h)
    kernel = splash_attention_kernel.make_splash_mqa_single_device(mask)
    scaled = (q * e**-0.5).reshape(-1, n, h, e).swapaxes(1, 2)
    attended = jax.vmap(kernel)(scaled, k.reshape(-1, n, e), v.reshape(-1, n, e))
    return attended.swapaxes(1, 2).reshape(q.shape).astype(q.dtype)
