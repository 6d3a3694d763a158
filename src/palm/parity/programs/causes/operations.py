"""Causes that lie in the operations: one too many, a lower precision, other hidden entries."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from palm.parity.programs.causes.cause import EQUAL, Cause, coarse, coarsened, relation, value_name
from palm.parity.programs.evidence import Evidence, Half
from palm.parity.programs.layout import distance, layouts
from palm.parity.programs.words import BOOKKEEPING, family
from palm.tracing.operation import Change

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
    for which, half, other in found.sides():
        few = (p for p in half.region if coarse(half.values[p]) is not None)
        for p, q in itertools.product(few, (*other.region, *other.reads)):
            seen = layouts(other.values[q], half.values[p].shape)
            name = next((name for x in seen if (name := coarsened(x, half.values[p]))), None)
            if name is not None:
                text = f"{half.label} rounds {value_name(other, q)} of {other.label} to {name}"
                yield Cause(f"rounded to {name}", text, *((p, q) if which == "a" else (q, p)))
                return


def mask(found: Evidence) -> Iterator[Cause]:
    """Other entries are hidden."""
    x, y = found.end_a, found.end_b
    if x.shape != y.shape:
        return
    hidden_a, hidden_b = (_hides(v) for v in (x, y))
    both = ~hidden_a & ~hidden_b
    if not np.array_equal(hidden_a, hidden_b) and both.any() and distance(x[both], y[both]) < EQUAL:
        of_a, of_b = hidden_a.mean(), hidden_b.mean()
        text = f"{found.a.label} hides {of_a:.0%} of the entries, {found.b.label} {of_b:.0%}"
        yield Cause("other mask", text, _hiding(found.a, found.a.end), _hiding(found.b, found.b.end))


def _hides(x: np.ndarray) -> np.ndarray:
    """Which scores are so low that nothing is left of them."""
    return np.nan_to_num(x, neginf=-1e300) <= _HIDDEN


def _hiding(half: Half, i: int) -> int:
    """The operation of a region in which it is decided which entries of a value are hidden."""
    own = [j for j in half.operations[i].inputs if j in half.region]
    low = [j for j in own if half.values[j].size > 1 and _hides(half.values[j]).any()]
    if low:
        return _hiding(half, low[0])
    return next((j for j in own if half.operations[j].dtype == "bool"), i)


def shape(found: Evidence) -> Iterator[Cause]:
    """The value in which it ends has other axes."""
    x, y = found.end_a.shape, found.end_b.shape
    if [n for n in x if n > 1] != [n for n in y if n > 1] and math.prod(x) != math.prod(y):
        told = f"the value of {found.a.label} has the shape {x}, that of {found.b.label} {y}"
        yield Cause(f"other shape: {x} for {y}", told)


def whole(found: Evidence) -> Iterator[Cause]:
    """The value in which it ends is the other side's, scaled, rounded, shifted or in another order."""
    how = relation(found.end_b, found.end_a)
    if how is not None:
        yield Cause(how, f"the value of {found.a.label} is that of {found.b.label} {how}")


def exchanged(found: Evidence) -> Iterator[Cause]:
    """Another operation is applied to the same values: with the other side's result, the sides meet."""
    groups_b: dict[frozenset[int], list[int]] = defaultdict(list)
    for j in found.b.region:
        groups_b[_groups(found, found.b, j)].append(j)
    for i in found.a.region:
        group, one = _groups(found, found.a, i), found.a.operations[i]
        for j in groups_b[group] if group and -1 not in group else ():
            two = found.b.operations[j]
            pair = family(one.op), family(two.op)
            if pair[0] == pair[1] or {*pair} & BOOKKEEPING:
                continue
            seen = layouts(found.b.values[j], found.a.values[i].shape)
            changes = (Change(values={i: put}) for put in seen)
            change = next((x for x in changes if found.meets("a", x)), None)
            if change is not None:
                text = f"{found.a.label} computes {pair[0]} where {found.b.label} computes {pair[1]}"
                yield Cause(f"other operation: {pair[0]} for {pair[1]}", text, i, j, ("a", change))
                return


def _groups(found: Evidence, half: Half, i: int) -> frozenset[int]:
    return frozenset(found.group(half, j) for j in half.operations[i].inputs)


def reordered(found: Evidence) -> Iterator[Cause]:
    """Two operations come in another order: with the other side's result of both, the sides meet."""
    for first, second in _chains(found.a):
        one, two = (found.a.operations[i] for i in (first, second))
        group = _groups(found, found.a, first)
        for second_b, first_b in _chains(found.b):
            names = [family(found.b.operations[j].op) for j in (second_b, first_b)]
            inverse = names[1] == f"inverse {family(one.op)}"
            same = (
                names[0] == family(two.op)
                and (inverse or names[1] == family(one.op))
                and names[0] != names[1]
            )
            if not same or _groups(found, found.b, second_b) != group or -1 in group:
                continue
            value = found.b.values[first_b]
            for put in layouts(1 / value if inverse else value, found.a.values[second].shape):
                change = Change(values={second: put})
                if found.meets("a", change):
                    order = f"{family(one.op)} before {family(two.op)}"
                    told = " ".join([order, *(f"{x:.7g}" for x in two.constants[-1:])])
                    text = f"{found.a.label} applies {told}, {found.b.label} after it"
                    yield Cause(f"other order: {order}", text, first, second_b, ("a", change))
                    return


def _chains(half: Half) -> Iterator[tuple[int, int]]:
    """Pairs of operations of a region of which the second reads the first's result."""
    for i in half.region:
        for j in half.operations[i].inputs:
            if j in half.region:
                yield j, i


def operations(found: Evidence) -> Iterator[Cause]:
    """One side has an operation that the other has not."""
    ours, theirs = (Counter(family(op.op) for op in half.ops()) for half in (found.a, found.b))
    only = [[name for name in x if name not in BOOKKEEPING] for x in (ours - theirs, theirs - ours)]
    told = [
        f"{half.label} computes {', '.join(names[:_MOST_NAMES])}"
        for half, names in zip((found.a, found.b), only, strict=True)
        if names
    ]
    if told:
        yield Cause("other operations", " and ".join(told) + ", the other side not")
