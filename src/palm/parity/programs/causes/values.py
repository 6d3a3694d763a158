"""Causes that lie in a value: another parameter, another number, another function of each element."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from palm.parity.programs.activations import ACTIVATIONS, Made
from palm.parity.programs.causes.cause import EQUAL, Cause, relation, value_name
from palm.parity.programs.evidence import Evidence, Half
from palm.parity.programs.layout import distance
from palm.parity.programs.words import family
from palm.tracing.operation import Change, Operation

# So many numbers of one side are replaced, each by so many of the other side's.
_NUMBERS, _OTHERS = 12, 8
_NEUTRAL = (0.0, 1.0)


def leaf(found: Evidence) -> Iterator[Cause]:
    """A parameter or a constant is another one."""
    if found.a.entry is None or found.b.entry is None:
        return
    one, two = found.a.operations[found.a.entry], found.b.operations[found.b.entry]
    if "operation" in (one.kind, two.kind):
        return
    if (given := other_inputs(one, two, (found.a.label, found.b.label))) is not None:
        yield given
        return
    x, y = found.b.values[found.b.entry], found.a.values[found.a.entry]
    named = one.name or two.name or "a constant"
    how = relation(x, y)
    if how is not None:
        yield Cause(f"other weight: {how}", f"{named} of {found.a.label} is that of {found.b.label} {how}")
    else:
        far = f", {distance(x, y):.1e} apart" if x.shape == y.shape else f": shapes {x.shape} and {y.shape}"
        yield Cause("other weight", f"{named} holds other numbers on the two sides{far}")


def other_inputs(one: Operation, two: Operation, labels: tuple[str, str]) -> Cause | None:
    """Two inputs that differ are no fault of the programs."""
    if not one.kind == two.kind == "input":
        return None
    return Cause("other inputs", f"{labels[0]} and {labels[1]} were not given the same inputs")


def constants(found: Evidence) -> Iterator[Cause]:
    """One number is another one: putting the one in the other's place makes the sides meet.

    0 and 1 must do so both ways: in the place of a divisor, say, 1 only takes the division away.
    """
    for which, half, other in found.sides():
        mine, theirs = _numbers(half), _numbers(other)
        only = [n for n in mine if not _has(theirs, n[2])][:_NUMBERS]
        candidates = dict.fromkeys(n[2] for n in theirs if not _has(mine, n[2]))
        for (i, k, x), y in itertools.product(only, list(candidates)[:_OTHERS]):
            change = _with_number(half, i, k, y)
            if not found.meets(which, change):
                continue
            back = "b" if which == "a" else "a"
            holders = ((j, n) for j, n, z in theirs if z == y)
            for holder, n in holders:
                if y in _NEUTRAL and not found.meets(back, _with_number(other, holder, n, x)):
                    continue
                pair = ((i, x), (holder, y)) if which == "a" else ((holder, y), (i, x))
                (at_a, of_a), (at_b, of_b) = pair
                text = f"{found.a.label} has the number {of_a:.10g} where {found.b.label} has {of_b:.10g}"
                yield Cause(f"other constant: {of_a:.10g} for {of_b:.10g}", text, at_a, at_b, (which, change))
                return


def _with_number(half: Half, i: int, k: int, x: float) -> Change:
    """The operation i with x in the place of its k-th number."""
    numbers = list(half.operations[i].constants)
    numbers[k] = x
    return Change(constants={i: tuple(numbers)})


def told_constant(one: Operation, two: Operation, labels: tuple[str, str]) -> Cause | None:
    """The only number in which two operations differ; nobody has tried whether it is the reason."""
    only_a = [x for x in one.constants if not any(np.isclose(x, y, rtol=1e-9) for y in two.constants)]
    only_b = [y for y in two.constants if not any(np.isclose(x, y, rtol=1e-9) for x in one.constants)]
    if family(one.op) != family(two.op) or len(only_a) != 1 or len(only_b) != 1:
        return None
    text = f"{labels[0]} has the number {only_a[0]:.10g} where {labels[1]} has {only_b[0]:.10g}"
    return Cause(f"other constant: {only_a[0]:.10g} for {only_b[0]:.10g}", text)


def factor(found: Evidence) -> Iterator[Cause]:
    """A value is one of the other side's, times a number: with the factor taken away, the sides meet."""
    for which, half, other in found.sides():
        for p, q in itertools.product(half.region, (*other.region, *other.reads)):
            c = _factor(half.fingerprints[p], other.fingerprints[q])
            if c is None or half.values[p].size != other.values[q].size:
                continue
            changes = (Change(values={p: half.values[p] * sign / c}) for sign in (1, -1))
            change = next((x for x in changes if found.meets(which, x)), None)
            if change is not None:
                text = f"{value_name(half, p)} in {half.label} is {value_name(other, q)} in {other.label}"
                at_a, at_b = (p, q) if which == "a" else (q, p)
                yield Cause(f"times {c:.7g}", f"{text} times {c:.7g}", at_a, at_b, (which, change))
                return


def _factor(x: np.ndarray, y: np.ndarray) -> float | None:
    """The ratio of two values' sizes if they are alike in all else."""
    if not (x[1] > 0 and y[1] > 0) or abs(x[1] / y[1] - 1) < EQUAL:
        return None
    even, odd = [3, 5], [2, 4]
    alike = np.allclose(x[even], y[even], atol=EQUAL) and np.allclose(abs(x[odd]), abs(y[odd]), atol=EQUAL)
    return float(x[1] / y[1]) if alike else None


def function(found: Evidence) -> Iterator[Cause]:
    """Another function is applied to each element: with the other side's, they meet."""
    for i, j in found.common():
        in_a = _functions(found.a, i)
        names_b = dict.fromkeys(name for _, name in reversed(_functions(found.b, j))) if in_a else {}
        for (p, one), two in itertools.product(in_a, names_b):
            if one == two:
                continue
            put = ACTIVATIONS[two](found.a.values[i].reshape(found.a.values[p].shape))
            change = Change(values={p: put})
            if found.meets("a", change):
                text = f"{found.a.label} applies {one} where {found.b.label} applies {two}"
                yield Cause(f"{one} for {two}", text, proof=("a", change))
                return


def _functions(half: Half, read: int) -> list[tuple[int, str]]:
    """The values of a region that a known function made of one it reads, with the function's name."""
    made = Made(half.values[read])
    named = ((p, made.by(half.values[p])) for p in half.region)
    return [(p, name) for p, name in named if name is not None]


def _numbers(half: Half) -> list[tuple[int, int, float]]:
    """The numbers among the arguments of a region: operation, place among its numbers, number."""
    those = ((i, half.operations[i]) for i in half.region)
    return [(i, k, x) for i, op in those if op.kind == "operation" for k, x in enumerate(op.constants)]


def _has(numbers: list[tuple[int, int, float]], x: float) -> bool:
    return any(np.isclose(x, y, rtol=1e-9) for _, _, y in numbers)
