"""Attention as it is written in the paper. Mirror: palm.jax_impl.paths.textbook."""

from __future__ import annotations

import torch

from palm.torch_impl.norm import widen
from palm.torch_impl.position import masked_scores, within_segments
from palm.torch_impl.shapes import Keys, Queries, Segments, Slopes


def textbook_attention(
    q: Queries, k: Keys, v: Keys, slopes: Slopes | None, segments: Segments | None = None
) -> Queries:
    """softmax((q·e^-1/2) kᵀ + position term) v in float32 or wider, rounded once at the end.

    Any device and dtype, derivatives of any order; memory grows with n².
    Shapes: q (..., n, h, e), k and v (..., n, e), slopes (h,), segments (..., n) -> (..., n, h, e).
    """
    scores = torch.einsum("...ihe,...je->...ihj", widen(q) * q.shape[-1] ** -0.5, widen(k))
    positions = torch.arange(q.shape[-3], device=q.device)
    scores = masked_scores(scores, slopes, positions[:, None] - positions)
    if segments is not None:
        scores = within_segments(scores, segments, segments)
    return torch.einsum("...ihj,...je->...ihe", scores.softmax(-1), widen(v)).to(q.dtype)
