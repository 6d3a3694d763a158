"""The training loss of the torch wing.

Letters: n sequence, d dim, r rows (all positions of all sequences), v num_tokens.
Mirror: palm.jax_impl.loss.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from palm.spec.tokens import IGNORED
from palm.torch_impl.linear import linear
from palm.torch_impl.norm import widen
from palm.torch_impl.shapes import Features, Logits, Output, Scalar, Scores, Segments, Targets, Tokens

Entropy = Callable[..., tuple[Tensor, Tensor]]

# More logits than this, 128 MiB in float32, are never held at once while training.
MOST_LOGITS = 1 << 25


def next_token_loss(
    logits: Logits, tokens: Tokens, segments: Segments | None = None, labels: Tokens | None = None
) -> Scalar:
    """Mean cross-entropy of each next token, in nats, in float32 or wider.

    mean over (..., i < n−1) of log Σ_v exp(logits_i) − logits_i[token_{i+1}]. With `labels` these are
    predicted in place of the tokens. A label of −100 does not count, nor does a token of another segment.
    Shapes: logits (..., n, v), tokens, segments and labels (..., n) -> ().
    """
    if segments is None and labels is None:
        return cross_entropy(logits[..., :-1, :], tokens[..., 1:])[0]
    targets = next_targets(tokens if labels is None else labels, segments)
    loss, _ = cross_entropy(logits[..., :-1, :], targets, masked=True)
    return loss * per_counted(targets, loss)


def segments_of(tokens: Tokens, end: int) -> Segments:
    """The number of each token's document, where each ends with the id `end`.

    Shapes: (..., n) -> (..., n).
    """
    ends = (tokens == end).long()
    return ends.cumsum(-1) - ends


def next_targets(labels: Tokens, segments: Segments | None) -> Tokens:
    """What each position but the last predicts; `IGNORED` where that is of another segment.

    Shapes: two of (..., n) -> (..., n − 1).
    """
    if segments is None:
        return labels[..., 1:]
    return torch.where(segments[..., 1:] == segments[..., :-1], labels[..., 1:], IGNORED)


def packed(windows: Tokens, end: int | None) -> tuple[Segments | None, Targets]:
    """The segments of windows of training, and what each position predicts. Without `end`, no segments.

    Shapes: (..., n + 1) -> (..., n), (..., n).
    """
    if end is None:
        return None, windows[..., 1:]
    segments = segments_of(windows, end)
    return segments[..., :-1], next_targets(windows, segments)


def per_counted(targets: Targets, like: Scalar) -> Scalar:
    """What a mean over all targets is multiplied by to be one over those that count.

    Shapes: (...) -> (), in the dtype of `like`.
    """
    counted = targets != IGNORED
    return targets.numel() / counted.sum().clamp(min=1).to(like.dtype)


def cross_entropy(logits: Scores, targets: Targets, *, masked: bool = False) -> tuple[Scalar, Scalar]:
    """Mean cross-entropy in nats, and the mean of log²Z that the z-loss weighs, in float32 or wider.

    With log Z = log Σ_v exp(logits): mean of log Z − logits[target]; mean of (log Z)². If `masked`, targets
    may be −100; both are 0 there, and the means are still over all (`per_counted`).
    Source: PaLM (arXiv:2204.02311) §5, "Loss function". Shapes: logits (..., v), targets (...) -> (), ().
    """
    wide = widen(logits)
    log_z = wide.logsumexp(-1)
    known = targets.clamp(min=0) if masked else targets
    losses = log_z - wide.gather(-1, known[..., None].long())[..., 0]
    if masked:
        losses, log_z = (x.masked_fill(targets == IGNORED, 0) for x in (losses, log_z))
    return losses.mean(), log_z.square().mean()


def output_loss(
    features: Features,
    weight: Output,
    targets: Targets,
    *,
    scale: float,
    z_loss: float,
    entropy: Entropy = cross_entropy,
    per_counted: Scalar | None = None,
) -> tuple[Scalar, Scalar]:
    """`cross_entropy` of the logits scale · features weightᵀ: what is minimised, cross-entropy + z_loss · z,
    and the cross-entropy in it, which carries no gradient of its own.

    Where there are many logits they are formed a part of the rows at a time, together with their gradient, so
    that (b, n, v) of them never exist; then there are first derivatives only. With `per_counted` targets may
    be −100, and it multiplies both results.
    Shapes: features (..., d), weight (v, d), targets (...) -> (), ().
    """
    rows, targets = features.reshape(-1, features.shape[-1]), targets.reshape(-1)
    entropy = entropy if per_counted is None else partial(entropy, masked=True)
    if len(rows) * len(weight) > MOST_LOGITS:
        # Not compiled: it differentiates inside, and what it runs is too large to gain by it.
        in_parts = torch.compiler.disable(_InParts.apply)
        found = in_parts(rows, weight, targets, scale, z_loss, torch.is_grad_enabled(), entropy)
    else:
        loss, z = entropy(linear(rows, weight) * scale, targets)
        found = loss + z_loss * z, loss.detach()
    return found if per_counted is None else (found[0] * per_counted, found[1] * per_counted)


class _InParts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: float,
        z_loss: float,
        enabled: bool,
        entropy: Entropy,
    ) -> tuple[Tensor, Tensor]:
        needed = enabled and any(ctx.needs_input_grad)
        total, mean = (rows.new_zeros((), dtype=widen(rows[:0]).dtype) for _ in range(2))
        if needed:
            for_rows, for_weight = torch.empty_like(rows), torch.zeros_like(weight, dtype=total.dtype)
        leaf = weight.detach().requires_grad_(needed)
        size = max(1, MOST_LOGITS // len(weight))
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            some = rows[part].detach().requires_grad_(needed)
            with torch.set_grad_enabled(needed):
                loss, z = entropy(linear(some, leaf) * scale, targets[part])
                objective = (loss + z_loss * z) * (len(some) / len(rows))
            if needed:
                for_rows[part], grad = torch.autograd.grad(objective, (some, leaf))
                for_weight += grad
            total += objective.detach()
            mean += loss.detach() * (len(some) / len(rows))
        if needed:
            ctx.save_for_backward(for_rows, for_weight.to(weight.dtype))
        ctx.mark_non_differentiable(mean)
        return total, mean

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        for_rows, for_weight = ctx.saved_tensors
        for_rows, for_weight = (x * grad.to(x.dtype) for x in (for_rows, for_weight))
        return for_rows, for_weight, None, None, None, None, None
