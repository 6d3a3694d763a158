"""A cause that lies in operations which one side has and the other has not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from palm.parity.programs.causes.cause import EQUAL, Cause, in_shape, source, value_name
from palm.parity.programs.evidence import Evidence, Half
from palm.parity.programs.layout import distance
from palm.parity.programs.words import BOOKKEEPING, family
from palm.tracing.operation import Change, Operation

# So many values are put in the place of others.
_TRIES = 32


def added(found: Evidence) -> Iterator[Cause]:
    """One side changes a value that the other takes as it is: without these operations, the sides meet."""
    shared = [{i for i, _ in found.common()}, {j for _, j in found.common()}]
    for (which, half, other), common in zip(found.sides(), shared, strict=True):
        for p, j in itertools.islice(_detours(half, common), _TRIES):
            x, y = half.values[j], half.values[p]
            change = Change(values={p: x.reshape(y.shape)})
            if not found.meets(which, change):
                continue
            ops = [half.operations[i] for i in half.region if i in _between(half, j, p)]
            kind, what = _told([op for op in ops if not op.moves], x, y)
            unchanged = _unchanged(found, half, other, p, j)
            at_a, at_b = (p, unchanged) if which == "a" else (unchanged, p)
            text = f"{half.label} applies {what} to {value_name(half, j)}, {other.label} does not"
            yield Cause(kind, text, at_a, at_b, (which, change))
            return


def _told(ops: list[Operation], x: np.ndarray, y: np.ndarray) -> tuple[str, str]:
    """What operations make y of x, as the kind of a cause and in a sentence."""
    ops = [op for op in ops if family(op.op) not in BOOKKEEPING]
    names = ", ".join(dict.fromkeys(family(op.op) for op in ops))
    if len(ops) > 1:
        return f"added operations: {names}", names
    c = float(np.sum(x * y.reshape(x.shape)) / np.sum(x * x))
    if distance(c * x.ravel(), y.ravel()) < EQUAL:
        return f"times {c:.7g}", f"a factor of {c:.7g}"
    what = " ".join([names, *(f"{number:.7g}" for number in ops[0].constants[-1:])])
    return f"added operation: {what}", what


def _detours(half: Half, common: set[int]) -> Iterator[tuple[int, int]]:
    """A value of the region and one of its shape that it was made of: by one operation, then by more."""
    own = [p for p in half.region if _computes(half.operations[p])]
    direct = [(p, j) for p in own for j in half.operations[p].inputs]
    longer = [(p, j) for p in own for j in sorted(common) if j not in half.operations[p].inputs]
    for p, j in (*direct, *longer):
        put = in_shape(half.values[j], half.values[p]) if j in half.values else None
        if (
            put is not None
            and put.size > 1
            and _between(half, j, p)
            and distance(put, half.values[p]) > EQUAL
        ):
            yield p, j


def _computes(op: Operation) -> bool:
    return op.kind == "operation" and not op.moves and family(op.op) not in BOOKKEEPING


def _between(half: Half, j: int, p: int) -> set[int]:
    """The operations of a region on the ways from a value to another: without the one, with the other."""
    after = {j}
    for i in half.region:
        if i <= p and after & set(half.operations[i].inputs):
            after.add(i)
    if p not in after:
        return set()
    before = {p}
    for i in reversed(half.region):
        if any(i in half.operations[k].inputs for k in before):
            before.add(i)
    return (after & before) - {j}


def _unchanged(found: Evidence, half: Half, other: Half, p: int, j: int) -> int | None:
    """What to show of the side that does not change a value: where it is made, or where it is read.

    What is missing has no line of its own. It belongs beside what it stands beside on the other side: the
    one that shares more of its lines and callers.
    """
    group = found.group(half, j)
    made = next((i for i in other.reads if found.group(other, i) == group >= 0), None)
    if made is None:
        return None
    read = next(i for i in other.region if made in other.operations[i].inputs)
    reader = next((half.operations[i] for i in half.region if p in half.operations[i].inputs), None)
    lines = _lines(half.operations[p])
    beside_made = len(lines & _lines(half.operations[j]))
    beside_read = 0 if reader is None else len(lines & _lines(reader))
    return source(other, made) if beside_made > beside_read else read


def _lines(op: Operation) -> set[tuple[str, int]]:
    """The line of an operation and those of its callers."""
    return set() if op.place is None else {(op.place.file, op.place.line), *op.place.callers}
