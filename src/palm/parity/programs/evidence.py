"""What is known about one difference: the operations between its entry and its end, and their values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from palm.parity.programs.align import Traced
from palm.parity.programs.layout import distance, nearest
from palm.parity.programs.parts import Part, Sides, ancestry
from palm.tracing.operation import Change, Operation

# So many operations back is looked for the place where elements change their order.
_BACK = 8


@dataclass(frozen=True)
class Half:
    """One side of a difference: its operations from the entry to the end, and what they read.

    `entry`: where it begins, None if this side has nothing of its own there. `region`: the operations up to
    the end. `reads`: the matched values that the region reads. `values`: of all of these, by index.
    `retry`: whether a run with a change meets the other side.
    """

    label: str
    operations: list[Operation]
    entry: int | None
    end: int
    region: tuple[int, ...]
    reads: tuple[int, ...]
    values: dict[int, np.ndarray]
    fingerprints: np.ndarray

    @property
    def at(self) -> Operation:
        """The operation to show: the entry, or where the end is made if there is none."""
        return self.operations[self.end if self.entry is None else self.entry]

    def ops(self) -> list[Operation]:
        """The operations of the region that compute something."""
        found = [self.operations[i] for i in self.region]
        return [op for op in found if not op.moves and op.kind == "operation"]


@dataclass(frozen=True)
class Evidence:
    """Both halves. `class_a`, `class_b`: a number for each value, the same where values are equal."""

    a: Half
    b: Half
    class_a: np.ndarray
    class_b: np.ndarray
    end_a: np.ndarray
    end_b: np.ndarray
    meets: Callable[[str, Change], bool]

    @property
    def distance(self) -> float:
        """How far the ends are apart, relative to themselves; NaN if they have other shapes."""
        return distance(self.end_a, self.end_b) if self.end_a.shape == self.end_b.shape else math.nan

    def sides(self) -> Iterator[tuple[str, Half, Half]]:
        """Each half with its name in `meets` and the other half."""
        yield "a", self.a, self.b
        yield "b", self.b, self.a

    def group(self, half: Half, i: int) -> int:
        """The class of a value; -1 where the other side has none that is equal."""
        return int((self.class_a if half is self.a else self.class_b)[i])

    def common(self) -> Iterator[tuple[int, int]]:
        """The values that both halves read, each in a and in b."""
        for i in self.a.reads:
            same = [j for j in self.b.reads if self.class_b[j] == self.class_a[i] >= 0]
            if same:
                yield i, same[0]


def gathered(sides: Sides, part: Part, meets: Callable[[str, Change], bool]) -> Evidence:
    """The evidence of one difference: one more run of each side."""
    halves = []
    for side, need, entry, end, change in (
        (sides.a, sides.need_a, part.entry_a, part.end_a, sides.change_a),
        (sides.b, sides.need_b, part.entry_b, part.end_b, sides.change_b),
    ):
        region = sorted(ancestry(side, end, need)) if need[end] or entry == end else []
        reads = sorted({j for i in region for j in side.operations[i].inputs if not need[j]})
        behind = _behind(side, reads)
        wanted = {*region, *reads, *behind, end}
        run = side.program.run(change, values=wanted)
        halves.append(
            Half(
                side.program.label,
                side.operations,
                entry,
                end,
                tuple(region),
                tuple(reads),
                dict(run.values),
                run.fingerprints,
            )
        )
    a, b = halves
    end_a, end_b = a.values[a.end], b.values[b.end]
    seen = nearest(end_b, end_a)
    return Evidence(a, b, sides.class_a, sides.class_b, end_a, end_b if seen is None else seen, meets)


def _behind(side: Traced, reads: list[int]) -> set[int]:
    """What the matched values that a region reads were made of, a few operations back."""
    found: set[int] = set()
    front = set(reads)
    for _ in range(_BACK):
        front = {j for i in front for j in side.operations[i].inputs} - found
        found |= front
    return found
