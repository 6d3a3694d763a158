"""The two optimisers of the torch wing, written once so that they are those of `palm.reference_optimizer`.

torch.optim.Adafactor is another algorithm. Letters: p parameter, g gradient (already clipped), m and s first
and second moment. Mirror: palm.jax_impl.optimizer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from palm.recipe import SCALE_FLOOR, SQUARE_FLOOR, Rates

Update = tuple[Tensor, Tensor, Tensor]


def adamw(p: Tensor, g: Tensor, m: Tensor, s: Tensor, rates: Rates, eps: float) -> Update:
    """What a step takes from p, and the moments, changed in place.

    m ← β₁m + (1−β₁)g;  s ← β₂s + (1−β₂)g²;  update = lr·(m/(1−β₁ᵏ)) / (sqrt(s/(1−β₂ᵏ)) + eps) + decay·p.
    Source: Loshchilov & Hutter (arXiv:1711.05101), algorithm 2. Norm scales, the vectors, do not decay.
    """
    m.mul_(rates.beta1).add_(g, alpha=rates.rest1)
    s.mul_(rates.beta2).addcmul_(g, g, value=rates.rest2)
    divisor = (s / rates.correction2).sqrt_().add_(eps)
    update = torch.div(m, divisor, out=divisor).mul_(rates.lr / rates.correction1)
    return _decayed(update, p, rates), m, s


def adafactor(p: Tensor, g: Tensor, m: Tensor, s: Tensor, rates: Rates, eps: float) -> Update:
    """What a step takes from p, and the moments, changed in place; `eps` is not used.

    s ← β₂s + (1−β₂)(g² + 1e-30) with β₂ = 1 − k^−0.8;  m ← β₁m + (1−β₁)·g/sqrt(s);
    update = lr·max(1e-3, rms(p))·m + decay·p. Not factored; the momentum is of the scaled gradient.
    Source: PaLM (arXiv:2204.02311) §5; Shazeer & Stern (arXiv:1804.04235) algorithm 4, §8.
    """
    s.mul_(rates.beta2).add_(g.square().add_(SQUARE_FLOOR), alpha=rates.rest2)
    m.mul_(rates.beta1).addcdiv_(g, s.sqrt(), value=rates.rest1)
    scale = rms(p).clamp(min=SCALE_FLOOR)
    return _decayed(m * (rates.lr * scale), p, rates), m, s


OPTIMIZERS = {"adamw": adamw, "adafactor": adafactor}


def rms(p: Tensor) -> Tensor:
    """The root of the mean square of all elements."""
    return torch.linalg.vector_norm(p) * p.numel() ** -0.5


def _decayed(update: Tensor, p: Tensor, rates: Rates) -> Tensor:
    return update.add_(p, alpha=rates.decay) if p.ndim > 1 else update
