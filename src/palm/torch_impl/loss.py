"""The training loss of the torch wing.

Letters: n sequence, d dim, r rows (all positions of all sequences), v num_tokens.
Mirror: palm.jax_impl.loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from palm.torch_impl.linear import linear
from palm.torch_impl.norm import widen
from palm.torch_impl.shapes import Features, Logits, Output, Scalar, Scores, Targets, Tokens

Entropy = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# More logits than this, 128 MiB in float32, are never held at once while training.
MOST_LOGITS = 1 << 25


def next_token_loss(logits: Logits, tokens: Tokens) -> Scalar:
    """Mean cross-entropy of each next token, in nats, in float32 or wider.

    mean over (..., i < n−1) of log Σ_v exp(logits_i) − logits_i[token_{i+1}].
    Shapes: logits (..., n, v), tokens (..., n) -> ().
    """
    return cross_entropy(logits[..., :-1, :], tokens[..., 1:])[0]


def cross_entropy(logits: Scores, targets: Targets) -> tuple[Scalar, Scalar]:
    """Mean cross-entropy in nats, and the mean of log²Z that the z-loss weighs, in float32 or wider.

    With log Z = log Σ_v exp(logits): mean of log Z − logits[target]; mean of (log Z)².
    Source: PaLM (arXiv:2204.02311) §5, "Loss function". Shapes: logits (..., v), targets (...) -> (), ().
    """
    wide = widen(logits)
    log_z = wide.logsumexp(-1)
    hit = wide.gather(-1, targets[..., None].long())[..., 0]
    return (log_z - hit).mean(), log_z.square().mean()


def output_loss(
    features: Features,
    weight: Output,
    targets: Targets,
    *,
    scale: float,
    z_loss: float,
    entropy: Entropy = cross_entropy,
) -> tuple[Scalar, Scalar]:
    """`cross_entropy` of the logits scale · features weightᵀ: what is minimised, cross-entropy + z_loss · z,
    and the cross-entropy in it, which carries no gradient of its own.

    Where there are many logits they are formed a part of the rows at a time, together with their gradient, so
    that (b, n, v) of them never exist; then there are first derivatives only.
    Shapes: features (..., d), weight (v, d), targets (...) -> (), ().
    """
    rows, targets = features.reshape(-1, features.shape[-1]), targets.reshape(-1)
    if len(rows) * len(weight) > MOST_LOGITS:
        # Not compiled: it differentiates inside, and what it runs is too large to gain by it.
        in_parts = torch.compiler.disable(_InParts.apply)
        return in_parts(rows, weight, targets, scale, z_loss, torch.is_grad_enabled(), entropy)
    loss, z = entropy(linear(rows, weight) * scale, targets)
    return loss + z_loss * z, loss.detach()


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
