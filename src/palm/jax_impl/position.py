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
from palm.positions import alibi_slopes, rotary_table

Rotation = tuple[Array, Array]


def alibi_bias(config: PaLMConfig, length: int, *, dtype: np.dtype) -> Array:
    """ALiBi's −m_h·(i − j) where j ≤ i, −inf elsewhere.

    Distances are whole numbers up to n, which bfloat16 cannot hold above 256: pass float32 or wider.
    Source: ALiBi (arXiv:2108.12409) §3. Shape: (h, n, n).
    """
    slopes = jnp.asarray(alibi_slopes(config.heads), dtype)
    positions = jnp.arange(length)
    distance = positions[:, None] - positions[None, :]
    bias = -slopes[:, None, None] * distance.astype(dtype)
    return jnp.where(distance < 0, -jnp.inf, bias)


def alibi_bias_at(config: PaLMConfig, positions: Array, length: int, *, dtype: np.dtype) -> Array:
    """The rows i = `positions` of `alibi_bias`, one query a sequence, for `length` cached keys.

    The slice must start at i: the top left corner of the whole bias would be that of i = 0.
    Shapes: positions (b,) -> (b, h, length).
    """
    slopes = jnp.asarray(alibi_slopes(config.heads), dtype)
    distance = positions[:, None] - jnp.arange(length)
    bias = -slopes[:, None] * distance[:, None, :].astype(dtype)
    return jnp.where(distance[:, None, :] < 0, -jnp.inf, bias)


def rotation_table(config: PaLMConfig, length: int, *, dtype: np.dtype) -> Rotation:
    """cos and sin of i·θ^(-2p/e), formed in float64 and rounded once to `dtype`.

    Source: RoFormer (arXiv:2104.09864) §3.2.2. Shapes: two of (n, e/2).
    """
    cos, sin = rotary_table(length, config.dim_head, config.rope_theta)
    return jnp.asarray(cos, dtype), jnp.asarray(sin, dtype)


def rotate(x: Array, rotation: Rotation) -> Array:
    """Turn each pair (2p, 2p+1): (a, b) -> (a cos − b sin, b cos + a sin).

    Shapes: x (..., n, e) -> (..., n, e).
    """
    cos, sin = rotation
    pairs = widen(x).reshape(*x.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape).astype(x.dtype)
