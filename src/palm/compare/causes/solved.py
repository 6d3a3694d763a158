"""What is free in a cause, solved from what was recorded: a number off any grid, a matrix, ids.

Letters: n sequence, d dim, v num_tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from palm.compare.causes.variants import Variant
from palm.compare.program import REFEREE, Place

# The kind of the tap, its place and what was recorded -> variants that may meet it.
Solve = Callable[[str, Place, np.ndarray], Iterator[Variant]]
# A number, always positive -> the variant that has it.
Family = Callable[[Place, float], Variant]

# A fit begins with so many positions, where nothing has turned or decayed far, and doubles them.
_BEGINNING = 8
_STEPS = 12


def number(family: Family, low: float, high: float, points: int = 100) -> Solve:
    """The number of a one-parameter family: the best on a grid from `low` to `high`, then Gauss-Newton on its
    logarithm, on more and more positions."""

    def solve(kind: str, at: Place, value: np.ndarray) -> Iterator[Variant]:
        if kind not in family(at, low)[1]:
            return

        def run(log: float) -> np.ndarray:
            return family(beginning, float(np.exp(log)))[1][kind](beginning)

        length = value.shape[-2]
        n = min(_BEGINNING, length)
        beginning = _beginning(at, n)
        grid = np.linspace(np.log(low), np.log(high), points)
        log = float(grid[np.argmin([np.square(value[..., :n, :] - run(x)).sum() for x in grid])])
        while True:
            log = _gauss_newton(run, value[..., :n, :], log, float(grid[1] - grid[0]))
            if n == length:
                break
            n = min(2 * n, length)
            beginning = _beginning(at, n)
        if np.log(low) <= log <= np.log(high):
            yield family(at, float(np.exp(log)))

    return solve


def _gauss_newton(run: Callable[[float], np.ndarray], value: np.ndarray, log: float, largest: float) -> float:
    for _ in range(_STEPS):
        slope = (run(log + 1e-5) - run(log - 1e-5)) / 2e-5
        curvature = np.square(slope).sum()
        if not curvature > 0:
            break
        step = float(np.clip((slope * (value - run(log))).sum() / curvature, -largest, largest))
        log += step
        if abs(step) < 1e-9:
            break
    return log


def _beginning(at: Place, n: int) -> Place:
    """The first n positions; nothing there depends on those after."""
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
    """Of each place the id of which the row was taken, if it was one."""
    if kind != "embed":
        return
    rows, table = value.reshape(-1, value.shape[-1]), at.weight("embedding")
    used = at.tokens.reshape(-1).copy()
    other = np.flatnonzero(np.square(rows - table[used]).sum(-1) > 1e-4 * np.square(table[used]).sum(-1))
    for place in other:
        used[place] = np.square(rows[place] - table).sum(-1).argmin()
    changed = used.reshape(at.tokens.shape)
    where = int((changed != at.tokens).sum())
    yield (
        f"other ids at {where:,} of {used.size:,} places",
        {"embed": lambda at: at.weight("embedding")[changed]},
    )


def matrix(kind: str, at: Place, value: np.ndarray) -> Iterator[Variant]:
    """Another output matrix (d, v), by least squares from three rows of four: the others must bear it out."""
    y = at.tap("norm").reshape(-1, at.config.dim) if kind == "logits" else np.zeros((0, 1))
    fitted = np.arange(len(y)) % 4 != 0
    if fitted.sum() > y.shape[1]:
        rows = value.reshape(len(y), -1)
        other = np.linalg.lstsq(y[fitted], rows[fitted], rcond=None)[0]
        yield "a matrix that the model does not have", {"logits": lambda at: at.tap("norm") @ other}
