"""The two position schemes of the torch wing.

Letters: n sequence, i query position, j key position, h heads, e dim_head. Mirror: palm.jax_impl.position.
"""

from __future__ import annotations

import torch
from torch import Tensor

from palm.config import PaLMConfig
from palm.positions import slope_list
from palm.torch_impl.norm import widen

Rotation = tuple[Tensor, Tensor]


def alibi_bias(config: PaLMConfig, length: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """ALiBi's −m_h·(i − j) where j ≤ i, −inf elsewhere.

    Distances are whole numbers up to n, which bfloat16 cannot hold above 256: pass float32 or wider.
    Source: ALiBi (arXiv:2108.12409) §3. Shape: (h, n, n).
    """
    # Through a Python list: torch.compile reads it as a constant, a NumPy array breaks the graph.
    slopes = torch.tensor(slope_list(config.heads), device=device, dtype=dtype)
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions[None, :]
    bias = -slopes[:, None, None] * distance.to(dtype)
    return bias.masked_fill(distance < 0, -torch.inf)


def alibi_bias_at(config: PaLMConfig, positions: Tensor, length: int, *, dtype: torch.dtype) -> Tensor:
    """The rows i = `positions` of `alibi_bias`, one query a sequence, for `length` cached keys.

    The slice must start at i: the top left corner of the whole bias would be that of i = 0.
    Shapes: positions (b,) -> (b, h, length).
    """
    slopes = torch.tensor(slope_list(config.heads), device=positions.device, dtype=dtype)
    distance = positions[:, None] - torch.arange(length, device=positions.device)
    bias = -slopes[:, None] * distance[:, None, :].to(dtype)
    return bias.masked_fill(distance[:, None, :] < 0, -torch.inf)


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

    Shapes: x (..., n, e) -> (..., n, e).
    """
    cos, sin = rotation
    a, b = widen(x).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)
