"""The position schemes of the JAX wing.

Letters: n sequence, i query position, j key position, h heads, e dim_head. Mirror: palm.torch_impl.position;
differs in that the rotation table is a NumPy constant: JAX has no float64 by default.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from palm.config import PaLMConfig
from palm.jax_impl.norm import widen
from palm.jax_impl.shapes import Distance, Each, Segments, Slopes
from palm.spec.positions import rotary_table, slope_list, xpos_table

Rotation = tuple[Array, Array]
# Of queries and of keys: the same object but with xPos.
Rotations = tuple[Rotation, Rotation]


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


def within_segments(scores: Array, mine: Segments, theirs: Segments) -> Array:
    """The scores, −inf where a query and a key are of different segments.

    Shapes: scores (..., i, h, j), mine (..., i), theirs (..., j) -> (..., i, h, j).
    """
    return jnp.where(mine[..., :, None, None] == theirs[..., None, None, :], scores, -jnp.inf)


def rotation_tables(config: PaLMConfig, length: int, *, dtype: np.dtype) -> Rotations:
    """`rotation_table` of queries, and of keys. Raises `TokenError` as it does."""
    queries = rotation_table(config, length, dtype=dtype)
    if config.positions != "xpos":
        return queries, queries
    return queries, rotation_table(config, length, keys=True, dtype=dtype)


def rotation_table(config: PaLMConfig, length: int, *, keys: bool = False, dtype: np.dtype) -> Rotation:
    """cos and sin of i·θ^(-2p/e), formed in float64 and rounded once to `dtype`.

    With xPos both are multiplied by s_p^(i / xpos_base), or for `keys` divided by it, s_p = (2p + 0.4e)/1.4e.
    Source: RoFormer (arXiv:2104.09864) §3.2.2; xPos (arXiv:2212.10554) §2.2. Shapes: two of (n, e/2).
    Raises `TokenError` for more positions than xPos has factors for.
    """
    cos, sin = rotary_table(length, config.dim_head, config.rope_theta)
    if config.positions == "xpos":
        factors = xpos_table(length, config.dim_head, config.xpos_base)
        factors = 1 / factors if keys else factors
        cos, sin = cos * factors, sin * factors
    return jnp.asarray(cos, dtype), jnp.asarray(sin, dtype)


def heads_rotation(rotations: Rotations, at: Each, heads: int) -> Rotation:
    """What turns the query heads of one position of each sequence and, after them, its key head.

    Shapes: tables (n, e/2), at (b,) -> two of (b, 1, e/2), or of (b, h + 1, e/2) where keys are turned
    otherwise than queries.
    """
    queries = rotations[0][0][at, None], rotations[0][1][at, None]
    if rotations[0] is rotations[1]:
        return queries
    keys = rotations[1][0][at, None], rotations[1][1][at, None]
    cos, sin = (
        jnp.concatenate([jnp.repeat(of_query, heads, 1), of_key], 1)
        for of_query, of_key in zip(queries, keys, strict=True)
    )
    return cos, sin


def rotate(x: Array, rotation: Rotation) -> Array:
    """Turn each pair (2p, 2p+1): (a, b) -> (a cos − b sin, b cos + a sin).

    Shapes: x (..., n, e), two of (n, e/2) -> (..., n, e); or with h between n and e, as (n, 1, e/2).
    """
    cos, sin = rotation
    pairs = widen(x).reshape(*x.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape).astype(x.dtype)
