"""Causes that lie in what an operation reads: elements in other places, another operand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from palm.parity.programs.causes.cause import EQUAL, Cause, relation, source, value_name
from palm.parity.programs.evidence import Evidence, Half
from palm.parity.programs.layout import distance, layouts, same_places
from palm.parity.programs.words import family
from palm.tracing.operation import Change

# So many values are put in the place of others.
_TRIES = 60
# Operations that take some elements of a value.
_TAKES = ("slice", "lookup", "unbind", "gather")


def arrangement(found: Evidence) -> Iterator[Cause]:
    """A value that both sides read has its elements in other places; followed back to where that begins."""
    common = list(found.common())
    first = next((pair for pair in common if _is_other(found, *pair)), None) or _together(found, common)
    if first is None:
        return
    at_a, at_b = _origin(found, *first)
    one, two = found.a.operations[at_a], found.b.operations[at_b]
    named = f"{value_name(found.a, at_a)} of {found.a.label}"
    if one.kind != "operation" and two.kind != "operation":
        how = relation(found.b.values[at_b], found.a.values[at_a]) or "in another order"
        kind = f"order of {one.name or two.name or 'a constant'}"
        yield Cause(kind, f"{named} is that of {found.b.label} {how}", at_a, at_b)
    else:
        text = f"{named} has its elements in other places than in {found.b.label}"
        yield Cause("order of elements", text, at_a, at_b)


def _together(found: Evidence, common: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """The first of several odd values, as queries and keys, if the sides meet once all are changed."""
    odd = [(i, j) for i, j in common if "operation" in _kinds(found, i, j) and _is_odd(found, i, j)]
    seen = [layouts(found.b.values[j], found.a.values[i].shape) for i, j in odd]
    changes = (dict(zip((i for i, _ in odd), puts, strict=True)) for puts in zip(*seen, strict=False))
    met = len(odd) > 1 and any(found.meets("a", Change(values=values)) for values in changes)
    return odd[0] if met else None


def _kinds(found: Evidence, i: int, j: int) -> tuple[str, str]:
    return found.a.operations[i].kind, found.b.operations[j].kind


def operand(found: Evidence) -> Iterator[Cause]:
    """The same operation reads another value, or one in another order."""
    if found.a.entry is None or found.b.entry is None:
        return
    one = found.a.operations[_reader(found.a, found.a.entry)]
    two = found.b.operations[_reader(found.b, found.b.entry)]
    if family(one.op) != family(two.op) or one.kind != "operation":
        return
    mine = {int(found.class_a[i]): i for i in one.inputs}
    theirs = {int(found.class_b[j]): j for j in two.inputs}
    only_a = [i for c, i in mine.items() if c not in theirs]
    only_b = [j for c, j in theirs.items() if c not in mine]
    if len(only_a) == len(only_b) == 1:
        at_a, at_b = source(found.a, only_a[0]), source(found.b, only_b[0])
        x, y = value_name(found.a, at_a), value_name(found.b, at_b)
        text = f"{family(one.op)} of {found.a.label} reads {x}, and that of {found.b.label} {y}"
        yield Cause("other operand", text)
        return
    for c in mine.keys() & theirs.keys():
        held_b, held_a = found.b.values.get(theirs[c]), found.a.values.get(mine[c])
        if held_b is None or held_a is None or held_b.size < 2:
            continue
        how = relation(held_b.reshape(held_a.shape) if held_b.size == held_a.size else held_b, held_a)
        if how is not None:
            text = f"{value_name(found.a, mine[c])} is, in {found.a.label}, that of {found.b.label} {how}"
            yield Cause(f"order: {how}", text)
            return


def _reader(half: Half, entry: int) -> int:
    """The first operation: of a leaf, the one that reads it."""
    if half.operations[entry].kind == "operation":
        return entry
    return next((i for i in half.region if entry in half.operations[i].inputs), entry)


def elements(found: Evidence) -> Iterator[Cause]:
    """Other elements are taken of a value that both sides read: with the other side's, they meet."""
    for i, j in found.common():
        taken_a, taken_b = (_taken(half, read) for half, read in ((found.a, i), (found.b, j)))
        if not taken_a or len(taken_a) != len(taken_b):
            continue
        pairs = zip(taken_a, taken_b, strict=True)
        seen = [layouts(found.b.values[q], found.a.values[p].shape) for p, q in pairs]
        for puts in zip(*seen, strict=False):
            change = Change(values=dict(zip(taken_a, puts, strict=True)))
            if found.meets("a", change):
                text = (
                    f"{found.a.label} takes other elements of {value_name(found.a, i)} than {found.b.label}"
                )
                yield Cause("other elements", text, taken_a[0], taken_b[0], ("a", change))
                return


def _taken(half: Half, read: int) -> list[int]:
    """The parts that a region takes of a value, in their order."""
    of_it = [p for p in half.region if half.operations[p].inputs == (read,)]
    size = half.values[read].size
    return [p for p in of_it if family(half.operations[p].op) in _TAKES and half.values[p].size < size]


def another(found: Evidence) -> Iterator[Cause]:
    """One side computes the same of another value: with the other side's in its place, they meet."""
    for which, half, other in found.sides():
        own = {found.group(half, i) for i in half.reads}
        candidates = [j for j in other.reads if found.group(other, j) not in own and other.values[j].size > 1]
        pairs = itertools.product((p for p in half.region if p != half.end), candidates)
        tries = ((p, j, x) for p, j in pairs for x in layouts(other.values[j], half.values[p].shape))
        for p, j, put in itertools.islice(tries, _TRIES):
            change = Change(values={p: put})
            if found.meets(which, change):
                one, two = value_name(half, p), value_name(other, j)
                at_a, at_b = (p, j) if which == "a" else (j, p)
                text = f"{half.label} reads {one} where {other.label} reads {two}"
                yield Cause("other operand", text, at_a, at_b, (which, change))
                return


def _is_other(found: Evidence, i: int, j: int) -> bool:
    """Whether two equal values have their elements in other places.

    Elements may stand otherwise in a layout that is a side's own, as of a transposed square matrix. That the
    mathematics is another one is shown by the sides, which meet once the elements are as on the other side.
    What a program is given or holds has its own layout only as a whole.
    """
    if "operation" not in _kinds(found, i, j):
        return _is_odd(found, i, j)
    x, group = found.a.values.get(i), found.class_a[i]
    if x is None or x.size < 4 or float(np.ptp(x)) == 0:
        return False
    views = [y for k, y in found.b.values.items() if found.class_b[k] == group and y.size == x.size]
    seen = (one for y in views for one in layouts(y, x.shape))
    others = {one.tobytes(): one for one in seen if distance(one, x) > EQUAL}
    return any(found.meets("a", Change(values={i: seen})) for seen in others.values())


def _is_odd(found: Evidence, i: int, j: int) -> bool:
    """Whether there is no layout in which two values are equal."""
    x, y = found.a.values.get(i), found.b.values.get(j)
    if x is None or y is None or x.size < 4 or x.size != y.size or float(np.ptp(x)) == 0:
        return False
    return not same_places(y, x)


def _origin(found: Evidence, i: int, j: int) -> tuple[int, int]:
    """The last pair of values, going back, whose elements are in other places while those before are not."""
    # One side may move elements where the other does not: then its own input is what is compared.
    back_a, back_b = found.a.operations[i], found.b.operations[j]
    before = [
        *((p, q) for p in back_a.inputs for q in back_b.inputs),
        *((p, j) for p in back_a.inputs if back_a.moves),
        *((i, q) for q in back_b.inputs if back_b.moves),
    ]
    for p, q in before:
        if not found.class_a[p] == found.class_b[q] >= 0:
            continue
        # What is computed has its axes in order; what moves elements may turn them.
        if (found.a.operations[p].moves or _is_odd(found, p, q)) and _is_other(found, p, q):
            return _origin(found, p, q)
    return i, j
