"""Which parameter of one program is which of the other: by its numbers, whatever its name and layout."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from palm.fields import plain
from palm.parity.programs.align import Alignment, Traced
from palm.parity.programs.layout import distance, nearest
from palm.tracing.operation import DTYPES
from palm.tracing.program import Program

# Sums over a slice that are equal in exact arithmetic are so to this in float64.
_EQUAL = 1e-9
# Slices of more elements along an axis are not looked up: 2^20 of them are a vocabulary.
_MOST_SLICES = 1 << 20


@dataclass(frozen=True)
class Parameter:
    """A parameter of one side, and where its numbers are on the other.

    `side`: the label of its program. `counterparts`: the names on the other side that hold its numbers, if
    any does. `how`: what it is of them, in words: `slices 0 to 63 of axis 0`, `joined along axis 1`; empty
    for one as a whole. `nearest`, `distance`: without a counterpart, the other side's parameter of as many
    elements that is nearest, and the relative rms of the difference; None and NaN if there is none.
    """

    side: str
    name: str
    counterparts: tuple[str, ...]
    how: str = ""
    nearest: str | None = None
    distance: float = float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return {**asdict(self), "counterparts": list(self.counterparts), "distance": plain(self.distance)}


@dataclass(frozen=True)
class _Slices:
    """Slices of arrays, each known by its sums of squares and of fourth powers: transposed, they are equal.

    `owner`: which array; `axis`: along which the slices lie, −1 for a whole one; `index`: which slice it is.
    """

    sums: np.ndarray
    sizes: np.ndarray
    owner: np.ndarray
    axis: np.ndarray
    index: np.ndarray

    @classmethod
    def of(cls, arrays: Sequence[np.ndarray]) -> _Slices:
        """All slices along each axis, of the arrays and, for stacked layers, of each of their parts."""
        rows: list[tuple[np.ndarray, int, int, int]] = []
        for owner, x in enumerate(arrays):
            rows.append((_sums(x.reshape(1, -1)), x.size, owner, -1))
            for part in (x, *(x if x.ndim > 2 else ())):
                for axis in range(part.ndim if part.ndim > 1 else 0):
                    if part.shape[axis] <= _MOST_SLICES:
                        rows.append((_along(part, axis), part.size // part.shape[axis], owner, axis))
        counts = [len(sums) for sums, *_ in rows]
        sums = np.concatenate([sums for sums, *_ in rows])
        sizes, owner_of, axis_of = (np.repeat([row[k] for row in rows], counts) for k in (1, 2, 3))
        index = np.concatenate([np.arange(n) for n in counts])
        order = np.argsort(sums[:, 0], kind="stable")
        return cls(*(v[order] for v in (sums, sizes, owner_of, axis_of, index)))

    def find(self, sums: np.ndarray, size: int) -> int | None:
        """The number of a slice with these sums and as many elements."""
        first, last = np.searchsorted(self.sums[:, 0], sums[0] * np.array([1 - _EQUAL, 1 + _EQUAL]))
        for i in range(first, last):
            if self.sizes[i] == size and abs(self.sums[i, 1] - sums[1]) <= _EQUAL * abs(sums[1]):
                return i
        return None


def parameters(alignment: Alignment) -> tuple[Parameter, ...]:
    """Each parameter of both sides, a's first.

    It takes another run of each side for those that no single one of the other side holds.
    """
    a, b = _Held(alignment.a), _Held(alignment.b)
    found = []
    for mine, theirs, to in ((a, b, alignment.to_b), (b, a, alignment.to_a)):
        whole = {i: [int(j) for j in to[i] if j in theirs.names] for i in mine.parameters}
        found += [
            Parameter(mine.label, mine.names[i], (theirs.names[others[0]],))
            for i, others in whole.items()
            if others
        ]
        found += _in_parts(mine, theirs, [i for i, others in whole.items() if not others])
    return tuple(found)


class _Held:
    """The float arrays of more than one element that a side holds: their names by index, and their values."""

    def __init__(self, side: Traced) -> None:
        self.program, self.label = side.program, side.program.label
        held = {
            i: op
            for i, op in enumerate(side.operations)
            if op.kind in ("parameter", "constant") and op.dtype in DTYPES and np.prod(op.shape) > 1
        }
        self.names = {i: op.name or f"{op.kind} at {op.place}" for i, op in held.items()}
        self.parameters = [i for i, op in held.items() if op.kind == "parameter"]

    @cached_property
    def values(self) -> Mapping[int, np.ndarray]:
        """In float64: another run."""
        return self.program.run(values=self.names).values


def _in_parts(mine: _Held, theirs: _Held, open_: Sequence[int]) -> Iterator[Parameter]:
    """Parameters that no single one of the other side holds: joined, split or stacked, or without any."""
    if not open_:
        return
    names = list(theirs.names.values())
    others = [theirs.values[j] for j in theirs.names] if names else []
    slices = _Slices.of(others) if others else None
    for i in open_:
        label, name, x = mine.label, mine.names[i], mine.values[i]
        part = None if slices is None else _part(x, slices, names)
        if part is not None:
            yield Parameter(label, name, *part)
            continue
        apart = [
            (distance(seen, x), n)
            for y, n in zip(others, names, strict=True)
            if (seen := _like(y, x)) is not None
        ]
        far, near = min(apart, default=(float("nan"), None))
        yield Parameter(label, name, (), "", near, far)


def _part(x: np.ndarray, slices: _Slices, names: Sequence[str]) -> tuple[tuple[str, ...], str] | None:
    """The names that hold the numbers of x, and what x is of them."""
    whole = slices.find(_sums(x.reshape(1, -1))[0], x.size)
    if whole is not None:
        return (names[slices.owner[whole]],), f"slice {slices.index[whole]} of axis {slices.axis[whole]}"
    for axis in range(x.ndim if x.ndim > 1 else 0):
        if x.shape[axis] > _MOST_SLICES:
            continue
        size = x.size // x.shape[axis]
        at = [slices.find(sums, size) for sums in _along(x, axis)]
        if None in at:
            continue
        rows = np.array(at, int)
        owners = tuple(dict.fromkeys(names[k] for k in slices.owner[rows]))
        if len(owners) > 1:
            return owners, f"joined along axis {axis}"
        index, of_axis = slices.index[rows], slices.axis[rows[0]]
        if (np.diff(index) == 1).all():
            return owners, f"slices {index[0]} to {index[-1]} of axis {of_axis}"
        return owners, f"slices of axis {of_axis} in another order"
    if x.ndim > 2:  # layers stacked, each of which is joined of several
        inner = [_part(layer, slices, names) for layer in x]
        if all(part is not None for part in inner):
            return tuple(dict.fromkeys(n for part in inner if part for n in part[0])), "stacked along axis 0"
    return None


def _sums(rows: np.ndarray) -> np.ndarray:
    """Sums of squares and of fourth powers of each row. Shapes: (n, m) -> (n, 2)."""
    squares = rows * rows
    return np.stack([squares.sum(1), (squares * squares).sum(1)], 1)


def _along(x: np.ndarray, axis: int) -> np.ndarray:
    return _sums(np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1))


def _like(y: np.ndarray, x: np.ndarray) -> np.ndarray | None:
    return nearest(y, x) if y.size == x.size else None


def constant(program: Program) -> tuple[str, ...]:
    """The names of the parameters whose elements are all equal."""
    found = zip(program.operations, program.first.fingerprints, strict=True)
    return tuple(
        op.name
        for op, (_, rms, *_, largest, smallest) in found
        if op.kind == "parameter" and math.prod(op.shape) > 1 and (rms == 0 or largest == smallest)
    )
