"""To which heads and positions a fault is confined."""

from __future__ import annotations

import numpy as np

from palm.config import PaLMConfig
from palm.parity.explain.replay import Departure
from palm.spec.forward import REFEREE
from palm.spec.rounding import rms


def confined(departure: Departure, config: PaLMConfig) -> str:
    """In words, to which of its heads and positions a departure is confined; empty if to none."""
    expected = REFEREE[departure.operation](departure.place)
    with np.errstate(invalid="ignore"):
        off = np.square(departure.value - expected)
    limit = (departure.bound * (rms(expected) or 1.0)) ** 2
    told = []
    if departure.operation in ("q", "attention"):
        heads = off.reshape(*off.shape[:-1], config.heads, config.dim_head)
        per_head = ~(heads.mean(axis=(*range(heads.ndim - 2), -1)) <= limit)
        if per_head.any() and not per_head.all():
            told.append(f"heads {_ranges(np.flatnonzero(per_head))} of {config.heads}")
    per_position = ~(off.mean(axis=(*range(off.ndim - 2), -1)) <= limit)
    first = int(np.argmax(per_position))
    if per_position.any() and not per_position.all():
        n = len(per_position)
        if per_position[first:].all():
            told.append(f"from position {first} on")
        elif per_position.sum() <= 0.5 * n:
            told.append(f"positions {_ranges(np.flatnonzero(per_position))} of {n}")
    return ", ".join(told)


def _ranges(numbers: np.ndarray) -> str:
    """0–3, 7, …: at most four pieces."""
    pieces = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    shown = [str(p[0]) if len(p) == 1 else f"{p[0]}–{p[-1]}" for p in pieces[:4]]
    return ", ".join(shown) + (", …" if len(pieces) > 4 else "")
