"""The referee's two optimisers: NumPy float64, one parameter at a time.

Letters: p parameter, g gradient (already clipped), m and s first and second moment.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from palm.recipes import SCALE_FLOOR, SQUARE_FLOOR, Rates
from palm.spec.rounding import rms

Update = tuple[np.ndarray, np.ndarray, np.ndarray]


def adamw(p: np.ndarray, g: np.ndarray, m: np.ndarray, s: np.ndarray, rates: Rates, eps: float) -> Update:
    """What a step takes from p, and the new moments.

    m ← β₁m + (1−β₁)g;  s ← β₂s + (1−β₂)g²;  update = lr·(m/(1−β₁ᵏ)) / (sqrt(s/(1−β₂ᵏ)) + eps) + decay·p.
    Source: Loshchilov & Hutter (arXiv:1711.05101), algorithm 2. Norm scales, the vectors, do not decay.
    """
    m = rates.beta1 * m + rates.rest1 * g
    s = rates.beta2 * s + rates.rest2 * g**2
    direction = (m / rates.correction1) / (np.sqrt(s / rates.correction2) + eps)
    return rates.lr * direction + _decayed(p, rates), m, s


def adafactor(p: np.ndarray, g: np.ndarray, m: np.ndarray, s: np.ndarray, rates: Rates, eps: float) -> Update:
    """What a step takes from p, and the new moments; `eps` is not used.

    s ← β₂s + (1−β₂)(g² + 1e-30) with β₂ = 1 − k^−0.8;  m ← β₁m + (1−β₁)·g/sqrt(s);
    update = lr·max(1e-3, rms(p))·m + decay·p. Not factored; the momentum is of the scaled gradient.
    Source: PaLM (arXiv:2204.02311) §5; Shazeer & Stern (arXiv:1804.04235) algorithm 4, §8.
    """
    s = rates.beta2 * s + rates.rest2 * (g**2 + SQUARE_FLOOR)
    m = rates.beta1 * m + rates.rest1 * (g / np.sqrt(s))
    return rates.lr * max(SCALE_FLOOR, rms(p)) * m + _decayed(p, rates), m, s


def clipped(grads: Mapping[str, np.ndarray], clip: float) -> tuple[dict[str, np.ndarray], float]:
    """The gradients scaled to a global norm of at most `clip` (0 leaves them), and the norm before."""
    norm = float(np.sqrt(sum(np.sum(np.square(grad)) for grad in grads.values())))
    factor = min(1.0, clip / norm) if clip and norm else 1.0
    return {name: grad * factor for name, grad in grads.items()}, norm


OPTIMIZERS = {"adamw": adamw, "adafactor": adafactor}


def _decayed(p: np.ndarray, rates: Rates) -> np.ndarray | float:
    return rates.decay * p if p.ndim > 1 else 0.0
