"""Causes that lie in the operations: one too many, a lower precision, other hidden entries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from palm.parity.programs.causes.cause import EQUAL, Cause, relation
from palm.parity.programs.evidence import Evidence, Half
from palm.parity.programs.layout import distance
from palm.parity.programs.words import family

# Operations that compute nothing.
_BOOKKEEPING = {
    *("arange", "iota", "tri", "fill", "zeros", "zeros_like", "new_zeros", "empty", "empty_like", "constant"),
    *("astype", "convert_element_type", "_to_copy", "copy", "copy_", "scalar_tensor", "write", "written"),
    *("slice", "index", "lookup", "unbind", "concatenate", "broadcast_in_dim", "expand"),
}
_CASTS = {"astype", "_to_copy", "convert_element_type"}
# Scores below this are hidden.
_HIDDEN = -1e4
_MOST_NAMES = 6


def rounding(found: Evidence) -> Iterator[Cause]:
    """One side rounds to less than the program's own dtype."""
    for half, other in ((found.a, found.b), (found.b, found.a)):
        low = [half.operations[i].rounds for i in half.region if half.operations[i].rounds]
        if low and not any(other.operations[i].rounds for i in other.region):
            yield Cause(f"rounded to {low[0]}", f"{half.label} rounds to {low[0]}, {other.label} does not")
            return


def mask(found: Evidence) -> Iterator[Cause]:
    """Other entries are hidden."""
    x, y = found.end_a, found.end_b
    if x.shape != y.shape:
        return
    hidden_a, hidden_b = (np.nan_to_num(v, neginf=-1e300) <= _HIDDEN for v in (x, y))
    both = ~hidden_a & ~hidden_b
    if not np.array_equal(hidden_a, hidden_b) and both.any() and distance(x[both], y[both]) < EQUAL:
        of_a, of_b = hidden_a.mean(), hidden_b.mean()
        text = f"{found.a.label} hides {of_a:.0%} of the entries, {found.b.label} {of_b:.0%}"
        yield Cause("other mask", text)


def whole(found: Evidence) -> Iterator[Cause]:
    """The value in which it ends is the other side's, scaled, rounded, shifted or in another order."""
    how = relation(found.end_b, found.end_a)
    if how is not None:
        yield Cause(how, f"the value of {found.a.label} is that of {found.b.label} {how}")


def added(found: Evidence) -> Iterator[Cause]:
    """One side changes a value by an operation that the other side reads as it is."""
    sides = (found.a, found.b, found.class_a, found.class_b), (found.b, found.a, found.class_b, found.class_a)
    for half, other, mine, theirs in sides:
        if half.entry is None or other.entry is None:
            continue
        first, target = half.operations[half.entry], other.operations[other.entry]
        if family(first.op) in {family(target.op), *_BOOKKEEPING} or first.kind != "operation":
            continue
        common = {int(mine[i]) for i in first.inputs} & {int(theirs[j]) for j in target.inputs} - {-1}
        same = [i for i in half.region if family(half.operations[i].op) == family(target.op)]
        if common and any(half.entry in _roots(half, i) for i in same if i != half.entry):
            what = " ".join([family(first.op), *(f"{x:.7g}" for x in first.constants[-1:])])
            text = f"{half.label} applies {what} before {family(target.op)}, {other.label} does not"
            # What is missing has no line of its own: the value that should have been changed is shown.
            unchanged = _source(other, next(j for j in target.inputs if theirs[j] in common))
            at = (half.entry, unchanged)
            yield Cause(f"added operation: {what}", text, *(at if half is found.a else at[::-1]))
            return


def operations(found: Evidence) -> Iterator[Cause]:
    """One side has an operation that the other has not."""
    ours, theirs = (Counter(family(op.op) for op in half.ops()) for half in (found.a, found.b))
    only = [[name for name in x if name not in _BOOKKEEPING] for x in (ours - theirs, theirs - ours)]
    told = [
        f"{half.label} computes {', '.join(names[:_MOST_NAMES])}"
        for half, names in zip((found.a, found.b), only, strict=True)
        if names
    ]
    if told:
        yield Cause("other operations", " and ".join(told) + ", the other side not")


def _source(half: Half, i: int) -> int:
    """The operation that computed a value, seen through what only moves elements or changes their dtype."""
    op = half.operations[i]
    return _source(half, op.inputs[0]) if len(op.inputs) == 1 and (op.moves or op.op in _CASTS) else i


def _roots(half: Half, i: int) -> set[int]:
    """The inputs of an operation, seen through what only moves elements."""
    found: set[int] = set()
    for j in half.operations[i].inputs:
        found.add(j)
        if half.operations[j].moves or half.operations[j].op in _CASTS:
            found |= _roots(half, j)
    return found
