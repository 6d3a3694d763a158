"""What is free in a cause, solved from what was recorded: a number off any grid, a matrix, ids.

Letters: n sequence, d dim, v num_tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np

from palm.parity.explain.causes.building_blocks import Variant
from palm.parity.explain.fit import polish, search
from palm.spec.forward import REFEREE, Place
from palm.spec.rounding import rms

# The kind of the tap, its place and what was recorded -> variants that may meet it.
Solve = Callable[[str, Place, np.ndarray], Iterator[Variant]]
# A number, always positive -> the variant that has it.
Family = Callable[[Place, float], Variant]

# A fit begins with so many positions, where nothing is rotated or decayed far, and doubles them up to so
# many: they tell the number, and the rest must bear it out.
_BEGINNING, _ENOUGH = 8, 64
# What has to be run on all positions, and many times, takes minutes on more.
_LONGEST = 512
# A row is that of an id if what is left of it is less than this share of its sum of squares.
_NEAR = 1e-4
_AT_ONCE = 64
_BORNE_OUT = 0.03


def number(family: Family, low: float, high: float, *, points: int = 100, causal: bool = True) -> Solve:
    """The number of a one-parameter family, fitted on the first positions, then on more and more of them.

    If it is not `causal`, the first positions depend on those after: all are taken, or none if they are many.
    """
    ends = math.log(low), math.log(high)

    def solve(kind: str, at: Place, value: np.ndarray) -> Iterator[Variant]:
        length = min(_ENOUGH, value.shape[-2]) if causal else value.shape[-2]
        if length > _LONGEST or kind not in family(at, low)[1]:
            return

        def residual(log: float) -> np.ndarray:
            made = family(beginning, math.exp(log))[1][kind](beginning)
            return made - value[..., : made.shape[-2], :]

        n = min(_BEGINNING, length) if causal else length
        beginning = _beginning(at, n)
        log = search(residual, *ends, points)
        while True:
            log = polish(residual, log, *ends, (ends[1] - ends[0]) / points)
            if n == length:
                break
            n = min(2 * n, length)
            beginning = _beginning(at, n)
        yield family(at, math.exp(log))

    return solve


def _beginning(at: Place, n: int) -> Place:
    """The first n positions."""
    taps = {name: tap[..., :n, :] for name, tap in at.taps.items()}
    return dataclasses.replace(at, taps=taps, tokens=at.tokens[..., :n])


def factor(kind: str, told: Callable[[Place, float], str]) -> Solve:
    """A factor on the whole of a tap, by least squares."""

    def solve(found: str, at: Place, value: np.ndarray) -> Iterator[Variant]:
        if found == kind:
            expected = REFEREE[kind](at)
            size = np.square(expected).sum()
            scale = float((value * expected).sum() / size) if size > 0 else 1.0
            yield told(at, scale), {kind: lambda at: scale * REFEREE[kind](at)}

    return solve


def ids(kind: str, at: Place, value: np.ndarray) -> Iterator[Variant]:
    """Of each place the id whose row was taken; nothing if one place has a row that is no id's."""
    if kind != "embed":
        return
    rows, table = value.reshape(-1, value.shape[-1]), at.weight("embedding")
    used, sizes = at.tokens.reshape(-1).copy(), np.square(table).sum(-1)
    other = np.flatnonzero(np.square(rows - table[used]).sum(-1) > _NEAR * sizes[used])
    for start in range(0, len(other), _AT_ONCE):
        places = other[start : start + _AT_ONCE]
        used[places] = (sizes - 2 * rows[places] @ table.T).argmin(-1)
        if (np.square(rows[places] - table[used[places]]).sum(-1) > _NEAR * sizes[used[places]]).any():
            return
    changed = used.reshape(at.tokens.shape)
    told = f"other ids are looked up at {int((changed != at.tokens).sum()):,} of {used.size:,} places"
    yield told, {"embed": lambda at: at.weight("embedding")[changed]}


def matrix(kind: str, at: Place, value: np.ndarray) -> Iterator[Variant]:
    """Another output matrix (d, v), by least squares, if one from three rows of four foretells the others."""
    if kind != "logits":
        return
    y, rows = (x.reshape(-1, x.shape[-1]) for x in (at.tap("norm"), value))
    kept = np.arange(len(y)) % 4 != 0
    if kept.sum() <= y.shape[1]:
        return
    foretold = y[~kept] @ np.linalg.lstsq(y[kept], rows[kept], rcond=None)[0]
    # Rows that are nearly alike amplify rounding; what is no matrix is not foretold at all.
    if rms(foretold - rows[~kept]) <= _BORNE_OUT * rms(rows):
        other = np.linalg.lstsq(y, rows, rcond=None)[0]
        other += np.linalg.lstsq(y, rows - y @ other, rcond=None)[0]  # what the first solution rounded
        yield (
            "the output matrix is one that the model does not have",
            {"logits": lambda at: at.tap("norm") @ other},
        )
