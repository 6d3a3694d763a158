"""A few numbers that stand for many, and still tell how far apart two arrays are.

A *sketch* is an array times a few vectors of random signs. It is linear, so the sketch of a difference is the
difference of the sketches, and its rms, in units of the array's own sketch, estimates the relative rms over
all elements. The triangle inequality that the rounding ratio stands on holds for sketches as it does for what
they are of: a ratio above √2 still proves that two functions differ. Source: Achlioptas, "Database-friendly
random projections" (2003); Johnson & Lindenstrauss (1984).

Letters: n sequence, w width, p sketched positions.
"""

from __future__ import annotations

import math

import numpy as np

from palm.parity.recording.checksums import chunks
from palm.spec.random import generator

# Sketched numbers a position, and on each side of a gradient; sketched positions.
_SIGNS, _GRADIENT_SIGNS, _POSITIONS = 4, 8, 512
# By how much the signs are rolled from one position to the next: a prime, so that they come around late.
_TURN = 7919


def sketch_tap(tap: np.ndarray, name: str) -> np.ndarray:
    """At up to 512 positions of all sequences, times random signs: (..., n, w) -> (p, 4), float64."""
    rows = tap.reshape(-1, tap.shape[-1])
    return _sketch_rows(rows, sketched_positions(len(rows)), name)


def _sketch_rows(rows: np.ndarray, positions: np.ndarray, name: str) -> np.ndarray:
    """Each position has the tap's signs rolled: no exchange of columns goes unseen everywhere."""
    width = rows.shape[1]
    signs = np.concatenate([_signs(name, width, _SIGNS)] * 2)
    wide = rows[positions].astype(np.float64)
    with np.errstate(invalid="ignore"):  # a sum of infinities is NaN, and said to be
        rolled = (signs[(_TURN * p) % width :][:width] for p in positions)
        return np.array([row @ of for row, of in zip(wide, rolled, strict=True)]).reshape(-1, _SIGNS)


def sketched_positions(count: int) -> np.ndarray:
    """Which of so many positions, of all sequences, are sketched: all, or evenly spaced ones."""
    return np.unique(np.linspace(0, count - 1, min(count, _POSITIONS)).astype(int))


def begins(tap: np.ndarray, sketch: np.ndarray, count: int, name: str) -> bool:
    """Whether a tap (m, w) at the first m of `count` positions is what `sketch` is of."""
    positions = sketched_positions(count)
    positions = positions[positions < len(tap)]
    with np.errstate(all="ignore"):
        again = _sketch_rows(tap, positions, name)
        slack = 1e-9 * np.abs(tap[positions].astype(np.float64)).sum(-1, keepdims=True)
        close = np.abs(again - sketch[: len(positions)]) <= slack
    # What is not finite may be NaN in one order of summing and infinite in another.
    finite = np.isfinite(again), np.isfinite(sketch[: len(positions)])
    return bool(np.where(finite[0], finite[1] & close, ~finite[1]).all())


def sketch_gradient(gradient: np.ndarray, name: str) -> np.ndarray:
    """Random signs times the gradient times random signs, float64: (m, w) -> (8, 8), (w,) -> (1, 8)."""
    matrix = gradient.reshape(-1, gradient.shape[-1])
    rows, width = matrix.shape
    left = _signs(f"{name} left", rows, _GRADIENT_SIGNS) if rows > 1 else np.ones((1, 1))
    total = np.zeros((left.shape[1], width))
    with np.errstate(invalid="ignore"):
        first = 0
        for chunk in chunks(matrix):
            total += left[first : first + len(chunk)].T @ chunk.astype(np.float64)
            first += len(chunk)
        return total @ _signs(f"{name} right", width, _GRADIENT_SIGNS)


def sketch_shape(shape: tuple[int, ...], *, is_tap: bool) -> tuple[int, int]:
    """Of the sketch of a tap (..., n, w), or of a gradient."""
    if is_tap:
        return len(sketched_positions(math.prod(shape[:-1]))), _SIGNS
    return (_GRADIENT_SIGNS if math.prod(shape[:-1]) > 1 else 1), _GRADIENT_SIGNS


def _signs(name: str, length: int, count: int) -> np.ndarray:
    return np.where(generator(0, f"sketch {name}").random((length, count)) < 0.5, -1.0, 1.0)
