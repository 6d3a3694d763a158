"""Attention by cuDNN's fused kernels, on NVIDIA GPUs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from palm.jax_impl.paths.blockwise import blockwise_attention
from palm.jax_impl.shapes import Keys, Queries, Segments, Slopes


def cudnn_attention(
    q: Queries, k: Keys, v: Keys, slopes: Slopes | None, segments: Segments | None = None
) -> Queries:
    """`textbook_attention` by cuDNN in bfloat16; of rotary models, for its bias would be n×n.

    What cuDNN does not take, wider dtypes and head widths that are not multiples of 8 up to 128 (on Hopper
    and later 256), goes blockwise; so do segments, and all on GPUs that have no cuDNN or no bfloat16.
    Shapes: q (..., n, h, e), k and v (..., n, e) -> (..., n, h, e).
    """
    assert slopes is None
    e = q.shape[-1]
    if segments is not None or q.dtype != jnp.bfloat16 or e % 8 or e > _widest_head():
        return blockwise_attention(q, k, v, slopes, segments)
    attended = jax.nn.dot_product_attention(
        q.reshape(-1, *q.shape[-3:]),
        k.reshape(-1, k.shape[-2], 1, e),
        v.reshape(-1, v.shape[-2], 1, e),
        is_causal=True,
        implementation="cudnn",
    )
    return attended.reshape(q.shape)


def _widest_head() -> int:
    try:
        generation = int(str(jax.devices("gpu")[0].compute_capability).split(".")[0])
    except (ValueError, RuntimeError):  # other makers have names there; without a GPU there is none
        return 0
    return 256 if generation >= 9 else 128 if generation >= 8 else 0
