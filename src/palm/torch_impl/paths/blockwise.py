"""Attention a block of queries at a time, with its own backward pass.

Mirror: palm.jax_impl.paths.blockwise.
Letters: b batch, n sequence, m queries of a block, j keys it sees, h heads, e dim_head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from palm.torch_impl.linear import product
from palm.torch_impl.norm import widen
from palm.torch_impl.paths.textbook import textbook_attention
from palm.torch_impl.position import masked_scores
from palm.torch_impl.private import softmax_backward, transformed
from palm.torch_impl.shapes import Keys, Queries, Segments, Slopes

BLOCK = 128


def blockwise_attention(
    q: Queries, k: Keys, v: Keys, slopes: Slopes | None, segments: Segments | None = None
) -> Queries:
    """`textbook_attention` a block of queries at a time, each against only the keys it may see.

    There is one key head, so the heads of a block are rows of one matrix: scores are (m·h, e) (e, j), a plain
    product. The backward pass computes them again. Any device and dtype, first derivatives only; memory is
    linear in n. Inside torch.compile, which would write the loop out, and in forward mode and the transforms
    of torch.func it is the textbook's.
    Shapes: q (..., n, h, e), k and v (..., n, e), slopes (h,), segments (..., n) -> (..., n, h, e).
    """
    if torch.compiler.is_compiling() or transformed() or any(_has_tangent(x) for x in (q, k, v)):
        return textbook_attention(q, k, v, slopes, segments)
    folded = (q.reshape(-1, *q.shape[-3:]), k.reshape(-1, *k.shape[-2:]), v.reshape(-1, *v.shape[-2:]))
    of_rows = None if segments is None else segments.expand(q.shape[:-2]).reshape(-1, q.shape[-3])
    return _Blockwise.apply(*folded, slopes, of_rows).view(q.shape)


def _has_tangent(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, segments: Tensor | None) -> Tensor:
        out = torch.empty_like(q)
        for row, block, keys, weights in _blocks(q, k, slopes, segments):
            out[row, block] = product(weights.to(q.dtype), v[row, keys]).view(-1, *q.shape[2:])
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, slopes, segments = ctx.saved_tensors
        (b, n, _, e), wide, dtype = q.shape, widen(q[:0]).dtype, q.dtype
        for_q = torch.empty_like(q)
        # Transposed: a small matrix by a large one is quicker than a large one, turned over, by a small one.
        for_k, for_v = (k.new_zeros(b, e, n, dtype=wide) for _ in range(2))
        with _without_autocast(q.device.type):
            for row, block, keys, weights in _blocks(q, k, slopes, segments):
                queries, ahead = (x[row, block].reshape(-1, e) for x in (q, grad))
                for_v[row, :, keys] += product(ahead.t(), weights.to(dtype))
                for_weights = product(ahead, v[row, keys].t()).to(wide)
                for_scores = softmax_backward(for_weights, weights).mul_(e**-0.5).to(dtype)
                for_q[row, block] = product(for_scores, k[row, keys]).view(-1, *q.shape[2:])
                for_k[row, :, keys] += product(queries.t(), for_scores)
        return for_q, for_k.mT.to(k.dtype), for_v.mT.to(v.dtype), None, None


def _without_autocast(device: str) -> AbstractContextManager[object]:
    """A backward pass outside of autocast, as is usual, has dtypes of its own; so it has one inside."""
    is_there = torch.amp.is_autocast_available(device)  # not on the meta device
    return torch.autocast(device, enabled=False) if is_there else nullcontext()


def _blocks(
    q: Tensor, k: Tensor, slopes: Tensor | None, segments: Tensor | None
) -> Iterator[tuple[int, slice, slice, Tensor]]:
    """Each sequence, block of queries, keys it sees, and attention weights (m·h, j) in float32 or wider."""
    rows, n, _, e = q.shape
    m = min(BLOCK, n)
    # Position terms depend on distance alone: each block's are a part of the last one's. Without ALiBi there
    # is only the mask, and only among the block's own keys.
    before = 0 if slopes is None else (n - 1) // m * m
    distance = torch.arange(before, before + m, device=q.device)[:, None] - torch.arange(
        before + m, device=q.device
    )
    terms = masked_scores(widen(q.new_zeros(())), slopes, distance)
    for row in range(rows):
        for start in range(0, n, m):
            end = min(start + m, n)
            queries = widen(q[row, start:end]).reshape(-1, e) * e**-0.5
            scores = product(queries, widen(k[row, :end]).t())
            reach = min(start, before)
            near = scores.view(end - start, -1, end)[..., start - reach :]
            near += terms[: end - start, :, before - reach : before + end - start]
            if segments is not None:
                of_row = segments[row]
                apart = of_row[start:end, None, None] != of_row[:end]
                scores.view(end - start, -1, end).masked_fill_(apart, -torch.inf)
            yield row, slice(start, end), slice(0, end), scores.softmax(-1)
