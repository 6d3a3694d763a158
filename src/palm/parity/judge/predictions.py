"""What comparisons of every kind measure and write down."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from palm.config import PaLMConfig
from palm.fields import plain

# Predictions that are shown beside each other, the likeliest tokens of each, and what came before.
_SHOWN, _LIKELIEST, _CONTEXT = 8, 3, 24


@dataclass(frozen=True)
class Prediction:
    """What both sides expect after one position, and what came: `a`, `b` are (token, probability) pairs.

    `divergence`: KL(a‖b) in nats. `context`: the tokens up to the position. Bytes are shown as text, others
    as #id.
    """

    sequence: int
    position: int
    context: str
    target: str
    a: tuple[tuple[str, float], ...]
    b: tuple[tuple[str, float], ...]
    divergence: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "divergence": plain(self.divergence)}


def side_by_side(
    config: PaLMConfig, tokens: np.ndarray, logits_a: np.ndarray, logits_b: np.ndarray
) -> tuple[Prediction, ...]:
    """Where two sides predict most differently, or, if they are equal, the first places.

    Shapes: tokens (..., n), logits (..., n, v). Places at which either is not finite are left out.
    """
    n, v = tokens.shape[-1], logits_a.shape[-1]
    rows = tokens.reshape(-1, n)
    with np.errstate(invalid="ignore"):
        a, b = (_log_softmax(x.astype(np.float64)).reshape(-1, n, v) for x in (logits_a, logits_b))
        kl = (np.exp(a) * (a - b)).sum(-1)[:, :-1]
    order = np.argsort(-np.where(np.isfinite(kl), kl, -np.inf), axis=None, kind="stable")[:_SHOWN]
    places = [divmod(int(place), n - 1) for place in order if np.isfinite(kl.flat[place])]
    return tuple(
        Prediction(
            sequence=row,
            position=i,
            context=shown(rows[row, max(0, i + 1 - _CONTEXT) : i + 1], config),
            target=shown(rows[row, i + 1 : i + 2], config),
            a=_likeliest(a[row, i], config),
            b=_likeliest(b[row, i], config),
            divergence=max(0.0, float(kl[row, i])),
        )
        for row, i in places
    )


def shown(ids: np.ndarray, config: PaLMConfig) -> str:
    """Ids as a reader knows them: text if they are bytes, else #id."""
    if config.num_tokens != 256:
        return " ".join(f"#{i}" for i in ids)
    return bytes(ids.astype(np.uint8)).decode("utf-8", "backslashreplace")


def _likeliest(log_probabilities: np.ndarray, config: PaLMConfig) -> tuple[tuple[str, float], ...]:
    best = np.argsort(-log_probabilities, kind="stable")[:_LIKELIEST]
    return tuple((shown(np.array([i]), config), float(np.exp(log_probabilities[i]))) for i in best)


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
