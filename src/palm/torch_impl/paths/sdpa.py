"""Attention by PyTorch's own fused kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from palm.torch_impl.paths.blockwise import blockwise_attention
from palm.torch_impl.paths.textbook import textbook_attention
from palm.torch_impl.shapes import Keys, Queries, Segments, Slopes


def sdpa_attention(
    q: Queries, k: Keys, v: Keys, slopes: Slopes | None, segments: Segments | None = None
) -> Queries:
    """`textbook_attention` by scaled_dot_product_attention; of rotary models, for its bias would be n×n.

    Float64 goes by the textbook, and segments, for which it would need a mask of n×n, go blockwise.
    Shapes: q (..., n, h, e), k and v (..., n, e) -> (..., n, h, e).
    """
    assert slopes is None
    if segments is not None:
        return blockwise_attention(q, k, v, slopes, segments)
    if q.dtype.itemsize > 4:
        return textbook_attention(q, k, v, slopes)
    queries = q.reshape(-1, *q.shape[-3:]).transpose(1, 2)
    keys, values = (x.reshape(-1, 1, *x.shape[-2:]) for x in (k, v))
    # On a GPU only the kernel for half precision knows of shared heads; the one for float32 sees them as many
    # heads at one place in memory.
    views = q.is_cuda and q.dtype == torch.float32
    if views:
        keys, values = (x.expand(-1, q.shape[-2], -1, -1) for x in (keys, values))
    attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=not views)
    return attended.transpose(1, 2).reshape(q.shape)
