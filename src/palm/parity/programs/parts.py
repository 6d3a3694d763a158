"""Where two programs part and where they run beside each other again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from palm.parity.programs.align import FLOOR, Alignment, Traced, entries, needed
from palm.parity.programs.layout import distance
from palm.parity.programs.words import family
from palm.tracing.fingerprint import unfilled
from palm.tracing.operation import NOTHING, Change
from palm.tracing.program import Program

T = TypeVar("T")


def outputs_apart(x: np.ndarray, y: np.ndarray) -> float:
    """How far two outputs are apart, relative to themselves; axes of one element are no difference.

    What is filled with a low number is no part of their size, but must be filled in both.
    """
    if tuple(n for n in x.shape if n > 1) != tuple(n for n in y.shape if n > 1):
        return 1.0
    return distance(unfilled(x), unfilled(y.reshape(x.shape))) if x.size else 0.0


def paired(ours: Mapping[str, T], theirs: Mapping[str, T]) -> list[tuple[T, T]]:
    """Each output with the other side's: of the same name, or else of the same number."""
    if ours.keys() == theirs.keys():
        return [(x, theirs[name]) for name, x in ours.items()]
    return list(zip(ours.values(), theirs.values(), strict=False))


def output_bound(alignment: Alignment) -> float:
    """How far apart rounding may put two outputs, relative to themselves."""
    moved = [FLOOR]
    for side in (alignment.a, alignment.b):
        for i in side.program.outputs.values():
            rms = side.run.fingerprints[i, 1]
            moved.append(float(side.tolerance[i, 1] / rms) if rms > 0 else 0.0)
    return float(np.nanmax(moved))


@dataclass(frozen=True)
class Part:
    """One difference: where it begins on each side, and the values in which it ends.

    `entry_a`, `entry_b`: the first operations of it; None where a side has nothing of its own there.
    `end_a`, `end_b`: two values that take the same place in both, so that one can stand in for the other.
    """

    entry_a: int | None
    entry_b: int | None
    end_a: int
    end_b: int


class Sides:
    """Both sides with what is needed of each, and the classes of equal values."""

    def __init__(self, alignment: Alignment, change_a: Change = NOTHING, change_b: Change = NOTHING) -> None:
        self.alignment, self.change_a, self.change_b = alignment, change_a, change_b
        self.a, self.b = alignment.a, alignment.b
        self.need_a = needed(self.a, alignment.matched_a)
        self.need_b = needed(self.b, alignment.matched_b)
        self.class_a, self.class_b = _classes(alignment)

    @property
    def open(self) -> int:
        """How many values are part of a difference."""
        return int(self.need_a.sum() + self.need_b.sum())

    def first_part(self) -> Part | None:
        """The first place where the programs part, in a's order; None if they never do."""
        if not self.open:
            return self.moved_output()
        ends = self.counterparts()
        if not ends:
            return None
        return self.part(*ends[0])

    def part(self, end_a: int, end_b: int) -> Part:
        """The difference that ends in two values."""
        before = ancestry(self.a, end_a, self.need_a), ancestry(self.b, end_b, self.need_b)
        from_a, from_b = (self.entries_within(k, region) for k, region in enumerate(before))
        return Part(*self.pair(from_a, from_b), end_a, end_b)

    def entries_within(self, number: int, region: Collection[int]) -> list[int]:
        """Where the difference begins in a part of side a (0) or b (1)."""
        side, need = ((self.a, self.need_a), (self.b, self.need_b))[number]
        return [i for i in entries(side, need) if i in region]

    def moved_output(self) -> Part | None:
        """An output that has the other side's elements in other places."""
        ours, theirs = self.a.run.outputs, self.b.run.outputs
        if len(ours) == len(theirs):
            bound = output_bound(self.alignment)
            for (i, j), (x, y) in zip(self.outputs(), paired(ours, theirs), strict=True):
                if outputs_apart(x, y) > bound:
                    return Part(i, j, i, j)
        return None

    def pair(self, from_a: list[int], from_b: list[int]) -> tuple[int | None, int | None]:
        """The two entries that have most inputs in common; the first of each side if none has."""
        best: tuple[float, int | None, int | None] = (0.0, None, None)
        for i in from_a:
            for j in from_b:
                common = self.inputs_a(i) & self.inputs_b(j)
                score = sum(self.weight(c) for c in common)
                if score > best[0]:
                    best = (score, i, j)
        if best[1] is None:
            return next(iter(from_a), None), next(iter(from_b), None)
        return best[1], best[2]

    def weight(self, group: int) -> float:
        """How much it says that two operations read the same value."""
        members = np.flatnonzero(self.class_a == group)
        return 1.0 if any(self.a.informative[i] for i in members) else 0.01

    def inputs_a(self, i: int) -> set[int]:
        """The matched values that an operation of a reads, by class."""
        return {int(self.class_a[j]) for j in self.a.operations[i].inputs if self.class_a[j] >= 0}

    def inputs_b(self, i: int) -> set[int]:
        """The matched values that an operation of b reads, by class."""
        return {int(self.class_b[j]) for j in self.b.operations[i].inputs if self.class_b[j] >= 0}

    def counterparts(self) -> list[tuple[int, int]]:
        """Needed values of both sides that take the same place, the first in a's order first.

        Two operations of one family that read the same matched value beside one unmatched value each: these
        two take the same place. So do their results, and what one family of operation makes of them. Where
        nothing is in common any more, the outputs take the same place.
        """
        found: set[tuple[int, int]] = set()
        readers: dict[tuple[str, int], list[int]] = defaultdict(list)
        for j in map(int, np.flatnonzero(self.need_b)):
            for group in self.inputs_b(j):
                readers[family(self.b.operations[j].op), group].append(j)
        for i in map(int, np.flatnonzero(self.need_a)):
            open_a = [x for x in self.a.operations[i].inputs if self.need_a[x]]
            for group in self.inputs_a(i):
                if self.weight(group) < 1:
                    continue
                for j in readers[family(self.a.operations[i].op), group]:
                    open_b = [x for x in self.b.operations[j].inputs if self.need_b[x]]
                    if len(open_a) == len(open_b) == 1 and self.alike(open_a[0], open_b[0]):
                        found.add((open_a[0], open_b[0]))
        for i, j in self.outputs():
            if self.need_a[i] or self.need_b[j]:
                found.add((i, j))
        return sorted(found)

    def outputs(self) -> list[tuple[int, int]]:
        """Each output with the other side's: of the same name, or else of the same number."""
        return paired(self.a.program.outputs, self.b.program.outputs)

    def alike(self, i: int, j: int) -> bool:
        """Whether one value could stand in for the other: as many elements."""
        return int(np.prod(self.a.operations[i].shape)) == int(np.prod(self.b.operations[j].shape))


def ancestry(side: Traced | Program, index: int, need: np.ndarray) -> set[int]:
    """A value and the needed values that it was computed from."""
    found, waiting = set(), [index]
    while waiting:
        i = waiting.pop()
        if i not in found:
            found.add(i)
            waiting += [j for j in side.operations[i].inputs if need[j]]
    return found


def sees_inputs(program: Program) -> bool:
    """Whether an output is made of the inputs, as far as was seen: not if a file or bytes are in between."""
    every = np.ones(len(program.operations), bool)
    made_of = (ancestry(program, index, every) for index in program.outputs.values())
    return any(program.operations[i].kind == "input" for i in set().union(*made_of))


def _classes(alignment: Alignment) -> tuple[np.ndarray, np.ndarray]:
    """A number for each value of both sides, the same for equal ones; -1 where there is no counterpart."""
    n, m = len(alignment.to_b), len(alignment.to_a)
    parent = list(range(n + m))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, others in enumerate(alignment.to_b):
        for j in others:
            parent[root(i)] = root(n + int(j))
    labels = np.array([root(i) for i in range(n + m)])
    a, b = labels[:n].copy(), labels[n:].copy()
    a[~alignment.matched_a] = -1
    b[~alignment.matched_b] = -1
    return a, b
