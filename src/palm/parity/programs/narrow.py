"""The smallest part of two programs that explains a difference: it may only seem to begin in many places."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from palm.parity.programs.layout import distance, nearest
from palm.parity.programs.parts import Part, Sides, ancestry
from palm.tracing.operation import Change

# So many pairs of values are tried; regions of more operations are left alone.
_TRIES, _MOST = 24, 96
# Values that take the same place differ by less than this, relative to themselves.
_NEAR = 0.6


def narrowed(sides: Sides, part: Part, which: str, meets: Callable[[str, Change], bool]) -> Part:
    """The part of `part` in which it is decided, if it has several entries.

    Right programs order their operations differently: one decays before it steps, another after it. Where
    they differ elsewhere, that is an entry too. A value of one side put in the place of the other's, after
    which the two ends meet, shows that the rest is no difference. `which`: the side to put it in.
    """
    regions = [
        sorted(ancestry(side, end, need))
        for side, end, need in ((sides.a, part.end_a, sides.need_a), (sides.b, part.end_b, sides.need_b))
    ]
    if all(len(sides.entries_within(k, region)) < 2 for k, region in enumerate(regions)):
        return part
    if max(map(len, regions)) > _MOST:
        return part
    for tried, (i, j, change) in enumerate(_candidates(sides, part, which, regions)):
        if tried == _TRIES:
            break
        if meets(which, change):
            return sides.part(i, j)
    return part


def _candidates(
    sides: Sides, part: Part, which: str, regions: list[list[int]]
) -> Iterator[tuple[int, int, Change]]:
    """Pairs of values that may take the same place, those with the fewest operations behind them first."""
    values_a = sides.a.program.run(sides.change_a, values=regions[0]).values
    values_b = sides.b.program.run(sides.change_b, values=regions[1]).values
    behind_a = {i: len(ancestry(sides.a, i, sides.need_a)) for i in regions[0]}
    behind_b = {j: len(ancestry(sides.b, j, sides.need_b)) for j in regions[1]}
    pairs = [(i, j) for i in regions[0] for j in regions[1] if (i, j) != (part.end_a, part.end_b)]
    for i, j in sorted(pairs, key=lambda p: behind_a[p[0]] + behind_b[p[1]]):
        x, y = values_a[i], values_b[j]
        if x.size < 2 or x.size != y.size:
            continue
        seen = nearest(y, x) if which == "a" else nearest(x, y)
        mine = x if which == "a" else y
        if seen is not None and 0 < distance(np.asarray(seen), mine) < _NEAR:
            yield i, j, Change({}, {i if which == "a" else j: np.asarray(seen)})
