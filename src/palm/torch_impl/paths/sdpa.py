"""Attention by PyTorch's own fused kernels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from palm.torch_impl.paths.textbook import textbook_attention


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None) -> Tensor:
    """`textbook_attention` by scaled_dot_product_attention; of rotary models, for its bias would be n×n.

    Float64 goes by the textbook. Shapes: q (..., n, h, e), k and v (..., n, e) -> (..., n, h, e).
    """
    assert slopes is None
    if q.dtype.itemsize > 4:
        return textbook_attention(q, k, v, slopes)
    attended = F.scaled_dot_product_attention(
        q.reshape(-1, *q.shape[-3:]).transpose(1, 2),
        k.reshape(-1, 1, *k.shape[-2:]),
        v.reshape(-1, 1, *v.shape[-2:]),
        is_causal=True,
        enable_gqa=True,
    )
    return attended.transpose(1, 2).reshape(q.shape)
