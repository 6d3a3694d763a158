"""One positive number fitted to an array, by its logarithm: a grid, golden sections, then Gauss-Newton."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from palm.spec.rounding import rms

# A number's logarithm -> what is left between the array that the number gives and the array that was given.
Residual = Callable[[float], np.ndarray]

_GOLDEN = (math.sqrt(5) - 1) / 2
_SECTIONS, _STEPS = 10, 12
# Half the width of the difference that gives a slope; a step so small ends the fit.
_WIDTH, _SMALLEST = 1e-5, 1e-9


def search(residual: Residual, low: float, high: float, points: int) -> float:
    """The logarithm in [low, high] of small residual: the best of a grid, narrowed between its neighbours.

    Takes about `points` + 12 residuals. One that is not finite counts as infinitely large.
    """
    sizes: dict[float, float] = {}

    def size(log: float) -> float:
        if log not in sizes:
            sizes[log] = _size(residual(log))
        return sizes[log]

    grid = [float(x) for x in np.linspace(low, high, points)]
    best = min(range(points), key=lambda i: size(grid[i]))
    a, b = grid[max(best - 1, 0)], grid[min(best + 1, points - 1)]
    left, right = b - _GOLDEN * (b - a), a + _GOLDEN * (b - a)
    for _ in range(_SECTIONS):
        if size(left) <= size(right):
            b, right = right, left
            left = b - _GOLDEN * (b - a)
        else:
            a, left = left, right
            right = a + _GOLDEN * (b - a)
    return min(sizes, key=size)


def polish(residual: Residual, start: float, low: float, high: float, largest: float) -> float:
    """A better logarithm than `start` by Gauss-Newton, in steps of at most `largest`, within [low, high]."""
    log, here = start, residual(start)
    best = (_size(here), log)
    for _ in range(_STEPS):
        slope = (residual(log + _WIDTH) - residual(log - _WIDTH)) / (2 * _WIDTH)
        curvature = float(np.square(slope).sum())
        if not 0 < curvature < math.inf:
            break
        step = min(max(-float((slope * here).sum()) / curvature, -largest), largest)
        before, log = log, min(max(log + step, low), high)
        here = residual(log)
        best = min(best, (_size(here), log))
        # The error of the next step is this one's squared.
        if not abs(log - before) >= _SMALLEST:
            break
    return best[1]


def _size(residual: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        found = rms(residual)
    return found if math.isfinite(found) else math.inf
