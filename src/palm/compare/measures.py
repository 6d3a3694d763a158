"""What comparisons of every kind measure and write down."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def predictions(logits_a: np.ndarray, logits_b: np.ndarray) -> tuple[float, float]:
    """Share of positions with the same most likely token, and the mean KL(a‖b) in nats."""
    with np.errstate(invalid="ignore"):  # logits that are not finite give numbers that are not
        a, b = (_log_softmax(np.asarray(logits, np.float64)) for logits in (logits_a, logits_b))
        kl = float((np.exp(a) * (a - b)).sum(-1).mean())
    top1 = float((a.argmax(-1) == b.argmax(-1)).mean())
    # Rounding may take the sum a hair below zero, which no divergence is.
    return top1, 0.0 if kl < 0.0 else kl


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def plain(value: Any) -> Any:
    """A value as JSON can hold it: a number that is not finite becomes text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
