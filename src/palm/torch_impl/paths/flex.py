"""Attention by a kernel that PyTorch compiles for the position scheme; on GPUs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from palm.torch_impl.paths.textbook import textbook_attention


def flex_attention(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None) -> Tensor:
    """`textbook_attention` by FlexAttention: ALiBi is formed on the fly, and masked blocks are skipped.

    Float64, which it does not know, goes by the textbook.
    Shapes: q (..., n, h, e), k and v (..., n, e), slopes (h,) -> (..., n, h, e).
    """
    if q.dtype.itemsize > 4:
        return textbook_attention(q, k, v, slopes)

    def biased(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        assert slopes is not None
        return score - slopes[h] * (i - j)

    attended = _compiled()(
        q.reshape(-1, *q.shape[-3:]).transpose(1, 2),
        k.reshape(-1, 1, *k.shape[-2:]),
        v.reshape(-1, 1, *v.shape[-2:]),
        score_mod=None if slopes is None else biased,
        block_mask=_causal(q.shape[-3], str(q.device)),
        enable_gqa=True,
    )
    return attended.transpose(1, 2).reshape(q.shape)


@functools.lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    # Not compiled it would hold all scores. Inside a compiled model it becomes a part of that.
    return torch.compile(flex.flex_attention)


@functools.lru_cache(maxsize=8)
def _causal(length: int, device: str) -> Any:
    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return i >= j

    return flex.create_block_mask(seen, None, None, length, length, device=device)
