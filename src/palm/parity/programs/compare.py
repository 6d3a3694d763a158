"""Compare two programs of anyone's: where they part, on which lines, and why."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np

from palm.parity.programs.align import Alignment, Traced, aligned, counterparts, repeated, what
from palm.parity.programs.causes import cause_of
from palm.parity.programs.causes.cause import Cause
from palm.parity.programs.causes.values import other_inputs, told_constant
from palm.parity.programs.evidence import Evidence, gathered
from palm.parity.programs.layout import layouts
from palm.parity.programs.losses import Precisions
from palm.parity.programs.narrow import narrowed
from palm.parity.programs.parameters import constant, parameters
from palm.parity.programs.parts import Part, Sides, ancestry, output_bound, outputs_apart, paired
from palm.parity.programs.result import Divergence, ProgramComparison, Site, described, grouped
from palm.parity.recording.recording import OnStep, quietly
from palm.tracing.numbers import numbers_of
from palm.tracing.operation import NOTHING, Change, Operation
from palm.tracing.program import Program

# So many places are looked at, one behind the other.
_MOST = 64
# So many operations are computed to look for places and causes, some ten seconds. One on so many elements
# counts as two.
_WORK, _ELEMENTS = 100_000, 20_000
# Where rounding moves outputs by more, values of different functions may look equal.
_CHAOS = 1e-2


def compare_programs(
    a: Program, b: Program, *, precision: bool = True, on_step: OnStep = quietly
) -> ProgramComparison:
    """Where two traced programs part in float64; if they do not, where one loses precision in its own.

    Without `precision` the last is not asked. `on_step` is called with the name of each finished step.
    """
    for one, other in ((a, b), (b, a)):
        one.settle(numbers_of(other.operations, other.first.fingerprints))
    doubts = tuple(doubt for program in (a, b) for doubt in _undetermined(program))
    search = _Search(a, b, on_step) if not doubts else None
    on_step("aligned")
    bound = math.nan if search is None else output_bound(search.sides.alignment)
    if bound > _CHAOS:
        doubts = (f"rounding alone moves their outputs by {bound:.0e} of their size",)
    divergences = grouped(search.divergences()) if search is not None and not doubts else ()
    apart = _furthest(a, b)
    own = None
    if search is not None and precision and not divergences and apart <= bound and not doubts:
        own = search.precisions()
    return ProgramComparison(
        label_a=a.label,
        label_b=b.label,
        divergences=divergences,
        doubts=doubts,
        precision=() if own is None else own.sides(),
        losses=() if own is None else tuple(own.losses()),
        rows=() if own is None else tuple(own.rows()),
        distance=apart,
        bound=bound,
        aligned=(0.0, 0.0) if search is None else search.aligned,
        operations=(len(a.operations), len(b.operations)),
        parameters=parameters(search.start) if search is not None and not search.is_recorded else (),
        constant=constant(a) or constant(b),
    )


def _undetermined(program: Program) -> Iterator[str]:
    """Why a program does not compute the same twice, if it does not."""
    if program.recorded:
        return
    again = program.again()
    same = len(again.fingerprints) == len(program.first.fingerprints) and np.array_equal(
        again.fingerprints, program.first.fingerprints, equal_nan=True
    )
    if same:
        return
    moved = next(
        (
            i
            for i, (x, y) in enumerate(zip(again.fingerprints, program.first.fingerprints, strict=False))
            if not np.array_equal(x, y, equal_nan=True)
        ),
        None,
    )
    if moved is not None:  # what is drawn may look the same each time: as many zeros, in other places
        moved = _drawn(program, moved)
    where = "" if moved is None else f"; the first value that changes is {Site.of(program.operations[moved])}"
    yield f"{program.label} is not deterministic: a second run gives other values{where}"


def _drawn(program: Program, index: int) -> int:
    """The last operation that draws among those a value was made of; itself if there is none."""
    made_of = ancestry(program, index, np.ones(len(program.operations), bool))
    return max((i for i in made_of if program.operations[i].draws), default=index)


def _furthest(a: Program, b: Program) -> float:
    """How far the outputs are apart; NaN if the programs have not as many of them."""
    ours, theirs = a.first.outputs, b.first.outputs
    if len(ours) != len(theirs):
        return float("nan")
    return max((outputs_apart(x, y) for x, y in paired(ours, theirs)), default=0.0)


class _Search:
    """Looks for one difference after the other, each with the earlier ones taken away."""

    def __init__(self, a: Program, b: Program, on_step: OnStep) -> None:
        self.labels, self.on_step = (a.label, b.label), on_step
        self.changes: dict[str, Change] = {"a": NOTHING, "b": NOTHING}
        self.start = aligned(a, b)
        self.sides = Sides(self.start)
        self.aligned = (
            _fraction(self.sides.a, self.sides.need_a),
            _fraction(self.sides.b, self.sides.need_b),
        )
        # It is run again and again with other values.
        self.put_in = "b" if work(b.operations) < work(a.operations) else "a"
        self.known: dict[object, Divergence] = {}
        self.left = _WORK
        self.is_recorded = a.recorded or b.recorded

    def precisions(self) -> Precisions:
        """Both sides in their own precision."""
        now = self.start
        roundings = now.a.program.rounding(), now.b.program.rounding()
        return Precisions(now, self.sides.outputs(), self.labels, roundings)

    def divergences(self) -> Iterator[Divergence]:
        """The places where the programs part, as they are found."""
        for number in range(_MOST):
            if number:
                self.on_step(f"place {number}")
            part = self.sides.first_part()
            if part is None or self.left < 0:
                return
            if self.is_recorded:  # what takes another run is not known
                yield self.first_places(part)
                return
            whole = part
            part = narrowed(self.sides, part, self.put_in, lambda *change, p=whole: self.meets((p,), *change))
            told, change = self.explained(part, whole)
            yield told
            if not self.pass_by(part, change):
                return

    def first_places(self, part: Part) -> Divergence:
        """Where two programs part of which one cannot run again."""
        pairs = ((part.entry_a, part.end_a, self.sides.a), (part.entry_b, part.end_b, self.sides.b))
        one, two = (side.operations[end if entry is None else entry] for entry, end, side in pairs)
        cause = other_inputs(one, two, self.labels) or told_constant(one, two, self.labels)
        return self.divergence(one, two, cause, math.nan)

    def divergence(
        self, one: Operation | None, two: Operation | None, cause: Cause | None, distance: float
    ) -> Divergence:
        """One difference in words."""
        where = described(one, two, self.labels)
        sentence = f"{where}." if cause is None else f"{cause.text}: {where}."
        a, b = (None if op is None else Site.of(op) for op in (one, two))
        return Divergence(a, b, None if cause is None else cause.kind, sentence, distance)

    def explained(self, part: Part, whole: Part) -> tuple[Divergence, tuple[str, Change] | None]:
        """One difference in words, and the change that proves its cause.

        One that is met again, in the next block say, has the same cause. `whole`: the difference before it
        was narrowed: where it ends, the sides meet too.
        """
        key, change = self.key(part), None
        if key not in self.known:
            ends = (part, whole)
            found = gathered(self.sides, part, lambda which, change: self.meets(ends, which, change))
            cause = cause_of(found)
            self.known[key] = self.told(found, cause)
            change = None if cause is None else cause.proof
        return self.known[key], change

    def key(self, part: Part) -> object:
        """Equal for the same operations on the same lines, with the same numbers."""
        pairs = ((part.entry_a, part.end_a, self.sides.a), (part.entry_b, part.end_b, self.sides.b))
        return tuple(what(side.operations[end if entry is None else entry]) for entry, end, side in pairs)

    def told(self, found: Evidence, cause: Cause | None) -> Divergence:
        """What is shown of a difference: the operations that the cause is about, or the entries."""
        at = (None, None) if cause is None else (cause.at_a, cause.at_b)
        one, two = (
            None if not half.region else half.at if i is None else half.operations[i]
            for half, i in zip((found.a, found.b), at, strict=True)
        )
        return self.divergence(one, two, cause, found.distance)

    def rerun(self, which: str, change: Change) -> tuple[Traced, Traced]:
        """Both sides, one of them run with a change."""
        now = self.sides.alignment
        side: Traced = getattr(now, which)
        self.left -= work(side.operations)
        changed = replace(side, run=side.program.run(change))
        return (changed, now.b) if which == "a" else (now.a, changed)

    def meets(self, parts: tuple[Part, ...], which: str, change: Change) -> bool:
        """Whether a change makes the two ends of one of the parts one."""
        if self.left < 0:
            return False
        now = self.sides.alignment
        ends = {(part.end_a if which == "a" else part.end_b) for part in parts}
        only = seen_through(getattr(now, which).operations, ends)
        try:
            a, b = self.rerun(which, replace(self.merged(which, change), only=only))
        except Exception:  # a number that the operation does not take
            return False
        return any(part.end_b in counterparts(a, part.end_a, b) for part in parts)

    def merged(self, which: str, change: Change) -> Change:
        """A change of one side after those that were made before.

        A line that computes the same several times, in each block say, is changed each time.
        """
        before, side = self.changes[which], getattr(self.sides.alignment, which)
        values = {j: x for i, x in change.values.items() for j in repeated(side, i)}
        constants = {j: x for i, x in change.constants.items() for j in repeated(side, i)}
        return Change({}, {**before.values, **values}, {**before.constants, **constants})

    def pass_by(self, part: Part, proof: tuple[str, Change] | None) -> bool:
        """Make one side as the other is, so that what follows can be compared, if less is apart then.

        By the change that proves the cause; else by the other side's value in the place of one side's, in the
        layout that leaves least apart.
        """
        for ways in (() if proof is None else (proof,), self.replacements(part)):
            found = [changed for way in ways if (changed := self.changed(*way)) is not None]
            best = min(found, key=lambda way: way[0].open, default=None)
            if best is not None and best[0].open < self.sides.open:
                self.sides, self.changes = best
                return True
        return False

    def replacements(self, part: Part) -> Iterator[tuple[str, Change]]:
        """The other side's value in the place of one side's, in each layout that it may have there."""
        which = self.put_in
        other, mine, theirs = ("b", part.end_a, part.end_b) if which == "a" else ("a", part.end_b, part.end_a)
        source: Traced = getattr(self.sides.alignment, other)
        target: Traced = getattr(self.sides.alignment, which)
        shape, rows = target.operations[mine].shape, source.run.fingerprints
        same = [*np.flatnonzero((rows == rows[theirs]).all(axis=1)), theirs]
        views = {source.operations[i].shape: int(i) for i in same}
        tried = set()
        for value in source.program.run(self.changes[other], values=views.values()).values.values():
            own = [value.reshape(shape)] if value.size == math.prod(shape) else []
            for seen in (*layouts(value, shape), *own):
                if seen.tobytes() not in tried:
                    tried.add(seen.tobytes())
                    yield which, Change(values={mine: seen})

    def changed(self, which: str, change: Change) -> tuple[Sides, dict[str, Change]] | None:
        """Both sides once one is changed for good, and what is changed then; None if it fails then."""
        whole = self.merged(which, change)
        changes = {**self.changes, which: whole}
        try:
            alignment = Alignment.of(*self.rerun(which, whole))
        except Exception:  # the program does not take the other one's value
            return None
        return Sides(alignment, changes["a"], changes["b"]), changes


def seen_through(operations: Sequence[Operation], indices: Collection[int]) -> set[int]:
    """Values, and those whose elements they are in another order or shape."""
    found: set[int] = set()
    for index in indices:
        at = index
        while at not in found:
            found.add(at)
            at = operations[at].inputs[0] if operations[at].moves else at
    return found


def work(operations: Sequence[Operation]) -> int:
    """How many small operations a run takes as long as."""
    return len(operations) + sum(math.prod(op.shape) for op in operations) // _ELEMENTS


def _fraction(side: Traced, need: np.ndarray) -> float:
    """Of the operations that lead to an output, the fraction that is not part of a difference."""
    leads = np.zeros(len(need), bool)
    leads[list(side.program.outputs.values())] = True
    for i in range(len(need) - 1, -1, -1):
        if leads[i]:
            leads[list(side.operations[i].inputs)] = True
    return 1.0 - float(need[leads].mean()) if leads.any() else 1.0
