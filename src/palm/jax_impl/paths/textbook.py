"""Attention as it is written in the paper. Mirror: palm.torch_impl.paths.textbook."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from palm.jax_impl.norm import widen
from palm.jax_impl.position import masked_scores, within_segments
from palm.jax_impl.shapes import Keys, Queries, Segments, Slopes


def textbook_attention(
    q: Queries, k: Keys, v: Keys, slopes: Slopes | None, segments: Segments | None = None
) -> Queries:
    """softmax((q·e^-1/2) kᵀ + position term) v in float32 or wider, rounded once at the end.

    Any device and dtype, derivatives of any order; memory grows with n².
    Shapes: q (..., n, h, e), k and v (..., n, e), slopes (h,), segments (..., n) -> (..., n, h, e).
    """
    scores = jnp.einsum("...ihe,...je->...ihj", widen(q) * q.shape[-1] ** -0.5, widen(k))
    positions = jnp.arange(q.shape[-3])
    scores = masked_scores(scores, slopes, positions[:, None] - positions)
    if segments is not None:
        scores = within_segments(scores, segments, segments)
    return jnp.einsum("...ihj,...je->...ihe", jax.nn.softmax(scores, -1), widen(v)).astype(q.dtype)
