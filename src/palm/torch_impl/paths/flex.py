"""Attention by a kernel that PyTorch compiles for the position scheme; on GPUs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from palm.torch_impl.paths.blockwise import blockwise_attention
from palm.torch_impl.private import transformed
from palm.torch_impl.shapes import Keys, Queries, Segments, Slopes

BLOCK = 128


def flex_attention(
    q: Queries, k: Keys, v: Keys, slopes: Slopes | None, segments: Segments | None = None
) -> Queries:
    """`textbook_attention` by FlexAttention: ALiBi is formed on the fly, and masked blocks are skipped.

    What it does not take, float64 and heads narrower than 16, goes blockwise.
    Shapes: q (..., n, h, e), k and v (..., n, e), slopes (h,) -> (..., n, h, e).
    """
    if q.dtype.itemsize > 4 or q.shape[-1] < 16:
        return blockwise_attention(q, k, v, slopes, segments)

    def biased(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        assert slopes is not None
        return score - slopes[h] * (i - j)

    # What transforms and fake tensors make is of use while they last; a compiler keeps its own.
    is_kept = type(q) is Tensor and not (torch.compiler.is_compiling() or transformed())
    mask = _causal if is_kept and segments is None else _causal_mask
    of_rows = None if segments is None else segments.expand(q.shape[:-2]).reshape(-1, q.shape[-3])
    attended = _compiled()(
        q.reshape(-1, *q.shape[-3:]).transpose(1, 2),
        k.reshape(-1, 1, *k.shape[-2:]),
        v.reshape(-1, 1, *v.shape[-2:]),
        score_mod=None if slopes is None else biased,
        block_mask=mask(q.shape[-3], str(q.device), of_rows),
        enable_gqa=True,
    )
    return attended.transpose(1, 2).reshape(q.shape)


@functools.lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    # Not compiled it would hold all scores. Inside a compiled model it becomes a part of that.
    return torch.compile(flex.flex_attention)


def _causal_mask(length: int, device: str, segments: Tensor | None = None) -> Any:
    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        causal = i >= j
        return causal if segments is None else causal & (segments[b, i] == segments[b, j])

    # By its blocks, not from a mask of every pair; and fit for training, whoever asks for it first.
    with torch.inference_mode(False):
        count = -(-length // BLOCK)
        blocks = torch.arange(count, dtype=torch.int32, device=device)
        on_diagonal, before = torch.ones_like(blocks), blocks
        if segments is not None:  # of any block before the diagonal, too, some may be hidden
            on_diagonal, before = blocks + 1, torch.zeros_like(blocks)
        partly = (blocks[:, None] if segments is None else blocks).expand(count, count)
        return flex.BlockMask.from_kv_blocks(
            on_diagonal[None, None],
            partly[None, None].contiguous(),
            before[None, None],
            blocks.expand(count, count)[None, None].contiguous(),
            BLOCK_SIZE=BLOCK,
            mask_mod=seen,
            seq_lengths=(length, length),
        )


_causal = functools.lru_cache(maxsize=8)(_causal_mask)
