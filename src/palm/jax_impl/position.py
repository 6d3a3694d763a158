"""The two position schemes of the JAX wing.

Letters: n sequence, i query position, j key position, h heads, e dim_head. Mirror: palm.torch_impl.position;
differs in that the rotation table is a NumPy constant: JAX has no float64 by default.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from palm.config import PaLMConfig
from palm.jax_impl.norm import widen
from palm.jax_impl.shapes import Distance, Slopes
from palm.spec.positions import rotary_table, slope_list

Rotation = tuple[Array, Array]


def alibi_slopes(config: PaLMConfig, *, dtype: np.dtype) -> Slopes:
    """ALiBi's slope m_h of each head. Source: ALiBi (arXiv:2108.12409) §3. Shape: (h,)."""
    return jnp.asarray(slope_list(config.heads), dtype)


def masked_scores(scores: Array, slopes: Slopes | None, distance: Distance) -> Array:
    """scores − m_h·(i − j) where j ≤ i, −inf elsewhere; with slopes None the mask alone.

    `distance` holds the whole numbers i − j, which bfloat16 cannot above 256: scores are float32 or wider.
    Source: ALiBi (arXiv:2108.12409) §3.
    Shapes: scores (..., i, h, j), or what broadcasts to it, slopes (h,), distance (i, j) -> (..., i, h, j).
    """
    if slopes is not None:
        scores = scores - slopes[:, None] * distance[:, None, :].astype(scores.dtype)
    return jnp.where(distance[:, None, :] < 0, -jnp.inf, scores)


def rotation_table(config: PaLMConfig, length: int, *, dtype: np.dtype) -> Rotation:
    """cos and sin of i·θ^(-2p/e), formed in float64 and rounded once to `dtype`.

    Source: RoFormer (arXiv:2104.09864) §3.2.2. Shapes: two of (n, e/2).
    """
    cos, sin = rotary_table(length, config.dim_head, config.rope_theta)
    return jnp.asarray(cos, dtype), jnp.asarray(sin, dtype)


def rotate(x: Array, rotation: Rotation) -> Array:
    """Turn each pair (2p, 2p+1): (a, b) -> (a cos − b sin, b cos + a sin).

    Shapes: x (..., n, e), two of (n, e/2) -> (..., n, e); or with h between n and e, as (n, 1, e/2).
    """
    cos, sin = rotation
    pairs = widen(x).reshape(*x.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape).astype(x.dtype)
