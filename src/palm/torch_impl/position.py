"""The two position schemes of the torch wing.

Letters: n sequence, i query position, j key position, h heads, e dim_head. Mirror: palm.jax_impl.position.
"""

from __future__ import annotations

import torch
from torch import Tensor

from palm.config import PaLMConfig
from palm.spec.positions import slope_list
from palm.torch_impl.norm import widen
from palm.torch_impl.shapes import Distance, Slopes

Rotation = tuple[Tensor, Tensor]


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


def rotation_table(config: PaLMConfig, length: int, *, device: torch.device, dtype: torch.dtype) -> Rotation:
    """cos and sin of i·θ^(-2p/e), formed in float64 and rounded once to `dtype`.

    Source: RoFormer (arXiv:2104.09864) §3.2.2. Shapes: two of (n, e/2).
    """
    e = config.dim_head
    frequencies = config.rope_theta ** (-torch.arange(0, e, 2, device=device, dtype=torch.float64) / e)
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float64), frequencies)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (2p, 2p+1): (a, b) -> (a cos − b sin, b cos + a sin).

    Shapes: x (..., n, e), two of (n, e/2) -> (..., n, e); or with h between n and e, as (n, 1, e/2).
    """
    cos, sin = rotation
    a, b = widen(x).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)
