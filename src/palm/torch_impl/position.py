"""The position schemes of the torch wing.

Letters: n sequence, i query position, j key position, h heads, e dim_head. Mirror: palm.jax_impl.position.
"""

from __future__ import annotations

import torch
from torch import Tensor

from palm.config import PaLMConfig
from palm.spec.positions import check_xpos, slope_list
from palm.torch_impl.norm import widen
from palm.torch_impl.shapes import Distance, Each, Segments, Slopes

Rotation = tuple[Tensor, Tensor]
# Of queries and of keys: the same object but with xPos.
Rotations = tuple[Rotation, Rotation]


def alibi_slopes(config: PaLMConfig, *, device: torch.device, dtype: torch.dtype) -> Slopes:
    """ALiBi's slope m_h of each head. Source: ALiBi (arXiv:2108.12409) §3. Shape: (h,)."""
    # Filled in where they are: a tensor made of the list is a copy to a GPU, for which the host waits.
    # Through a Python list: torch.compile reads it as a constant, a NumPy array breaks the graph.
    slopes = [torch.full((), slope, device=device, dtype=dtype) for slope in slope_list(config.heads)]
    return torch.stack(slopes)


def masked_scores(scores: Tensor, slopes: Slopes | None, distance: Distance) -> Tensor:
    """scores − m_h·(i − j) where j ≤ i, −inf elsewhere; with slopes None the mask alone.

    `distance` holds the whole numbers i − j, which bfloat16 cannot above 256: scores are float32 or wider.
    Source: ALiBi (arXiv:2108.12409) §3.
    Shapes: scores (..., i, h, j), or what broadcasts to it, slopes (h,), distance (i, j) -> (..., i, h, j).
    """
    if slopes is not None:
        scores = scores - slopes[:, None] * distance[:, None, :].to(scores.dtype)
    return torch.where(distance[:, None, :] < 0, -torch.inf, scores)


def within_segments(scores: Tensor, mine: Segments, theirs: Segments) -> Tensor:
    """The scores, −inf where a query and a key are of different segments.

    Shapes: scores (..., i, h, j), mine (..., i), theirs (..., j) -> (..., i, h, j).
    """
    return torch.where(mine[..., :, None, None] == theirs[..., None, None, :], scores, -torch.inf)


def rotation_tables(
    config: PaLMConfig, length: int, *, device: torch.device, dtype: torch.dtype
) -> Rotations:
    """`rotation_table` of queries, and of keys. Raises `TokenError` as it does."""
    queries = rotation_table(config, length, device=device, dtype=dtype)
    if config.positions != "xpos":
        return queries, queries
    return queries, rotation_table(config, length, keys=True, device=device, dtype=dtype)


def rotation_table(
    config: PaLMConfig, length: int, *, keys: bool = False, device: torch.device, dtype: torch.dtype
) -> Rotation:
    """cos and sin of i·θ^(-2p/e), formed in float64 and rounded once to `dtype`.

    With xPos both are multiplied by s_p^(i / xpos_base), or for `keys` divided by it, s_p = (2p + 0.4e)/1.4e.
    Source: RoFormer (arXiv:2104.09864) §3.2.2; xPos (arXiv:2212.10554) §2.2. Shapes: two of (n, e/2).
    Raises `TokenError` for more positions than xPos has factors for.
    """
    e = config.dim_head
    doubled = torch.arange(0, e, 2, device=device, dtype=torch.float64)
    positions = torch.arange(length, device=device, dtype=torch.float64)
    angles = torch.outer(positions, config.rope_theta ** (-doubled / e))
    cos, sin = angles.cos(), angles.sin()
    if config.positions == "xpos":
        check_xpos(length, config.xpos_base)
        powers = (-positions if keys else positions) / config.xpos_base
        factors = ((doubled + 0.4 * e) / (1.4 * e)) ** powers[:, None]
        cos, sin = cos * factors, sin * factors
    return cos.to(dtype), sin.to(dtype)


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
        torch.cat([of_query.expand(-1, heads, -1), of_key], 1)
        for of_query, of_key in zip(queries, keys, strict=True)
    )
    return cos, sin


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (2p, 2p+1): (a, b) -> (a cos − b sin, b cos + a sin).

    Shapes: x (..., n, e), two of (n, e/2) -> (..., n, e); or with h between n and e, as (n, 1, e/2).
    """
    cos, sin = rotation
    a, b = widen(x).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)
