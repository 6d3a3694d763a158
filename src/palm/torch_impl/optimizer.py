"""The two optimisers of the torch wing, written once so that they are those of `palm.spec.optimizer`.

The arithmetic of AdamW is PyTorch's fused kernel; torch.optim.Adafactor is another algorithm. Letters: p
parameter, g gradient (already clipped), m and s first and second moment. Mirror: palm.jax_impl.optimizer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from palm.recipes import SCALE_FLOOR, SQUARE_FLOOR, Rates
from palm.torch_impl.private import adamw_step

Update = tuple[Tensor, Tensor, Tensor]


def adamw(
    p: Tensor, g: Tensor, m: Tensor, s: Tensor, rates: Rates, eps: float, size: Tensor | None = None
) -> Update:
    """What a step takes from p, and the new moments, for which those given make way.

    m ← β₁m + (1−β₁)g;  s ← β₂s + (1−β₂)g²;  update = lr·(m/(1−β₁ᵏ)) / (sqrt(s/(1−β₂ᵏ)) + eps) + decay·p.
    Source: Loshchilov & Hutter (arXiv:1711.05101), algorithm 2. Norm scales, the vectors, do not decay.
    `size` is not used.
    """
    g, m, s = (x.contiguous() for x in (g, m, s))  # the kernel does not ask how its tensors lie in memory
    update = (p * rates.decay).contiguous() if p.ndim > 1 else torch.zeros_like(g)
    root = rates.correction2**0.5  # taken out of the root: the step itself corrects nothing
    rate = rates.lr * root / rates.correction1
    adamw_step(update, g, m, s, beta1=rates.beta1, beta2=rates.beta2, rate=rate, eps=eps * root)
    return update, m, s


def adafactor(
    p: Tensor, g: Tensor, m: Tensor, s: Tensor, rates: Rates, eps: float, size: Tensor | None = None
) -> Update:
    """What a step takes from p, and the new moments, for which those given make way; `eps` is not used.

    `size` is the rms of the whole parameter where p is a piece of it.

    s ← β₂s + (1−β₂)(g² + 1e-30) with β₂ = 1 − k^−0.8;  m ← β₁m + (1−β₁)·g/sqrt(s);
    update = lr·max(1e-3, rms(p))·m + decay·p. Not factored; the momentum is of the scaled gradient.
    Source: PaLM (arXiv:2204.02311) §5; Shazeer & Stern (arXiv:1804.04235) algorithm 4, §8.
    """
    s.mul_(rates.beta2).add_(g.square().add_(SQUARE_FLOOR), alpha=rates.rest2)
    m.mul_(rates.beta1).addcdiv_(g, s.sqrt(), value=rates.rest1)
    scale = (rms(p) if size is None else size).clamp(min=SCALE_FLOOR)
    return _decayed(m * (rates.lr * scale), p, rates), m, s


OPTIMIZERS = {"adamw": adamw, "adafactor": adafactor}


def rms(p: Tensor) -> Tensor:
    """The root of the mean square of all elements."""
    return torch.linalg.vector_norm(p) * p.numel() ** -0.5


def _decayed(update: Tensor, p: Tensor, rates: Rates) -> Tensor:
    return update.add_(p, alpha=rates.decay) if p.ndim > 1 else update
