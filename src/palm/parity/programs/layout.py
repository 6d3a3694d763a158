"""One array in the layout of another: other axes, the same elements in the same places of the mathematics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import numpy as np

_MOST_AXES = 5
_SAME = 1e-8

# For each target axis the source axes it is made of, as (axis, part, of how many parts).
_Pieces = dict[int, list[tuple[int, int, int]]]


def layouts(x: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Ways to see `x` in `shape` that are no change of the mathematics; as it is first, if that is one.

    Axes change their order; several become one, or one becomes several, in their own order. Merged and split
    otherwise, as heads and their elements by mistake, an array has its elements in other places.
    """
    source = [n for n in x.shape if n > 1]
    target = [n for n in shape if n > 1]
    if x.size != math.prod(shape) or max(len(source), len(target)) > _MOST_AXES:
        return
    x = x.reshape(source)
    for pieces in _matchings(tuple(range(len(source))), tuple(range(len(target))), source, target):
        order = [piece for t in range(len(target)) for piece in pieces[t]]
        split = sorted(order)
        sizes = [target[_owner(pieces, piece)] if piece[2] > 1 else source[piece[0]] for piece in split]
        yield x.reshape(sizes).transpose([split.index(piece) for piece in order]).reshape(shape)


def _matchings(
    sources: tuple[int, ...], targets: tuple[int, ...], source: list[int], target: list[int]
) -> Iterator[_Pieces]:
    """Ways to make the remaining target axes of the remaining source axes."""
    if not targets:
        if not sources:
            yield {}
        return
    t, others = targets[0], targets[1:]
    for count in range(1, len(sources) + 1):  # several axes become one
        for group in combinations(sources, count):
            if math.prod(source[s] for s in group) == target[t]:
                left = tuple(s for s in sources if s not in group)
                for rest in _matchings(left, others, source, target):
                    yield {t: [(s, 0, 1) for s in group], **rest}
    for s in sources:  # one axis becomes several
        for count in range(1, len(others) + 1):
            for more in combinations(others, count):
                if math.prod(target[i] for i in (t, *more)) == source[s]:
                    left = tuple(i for i in others if i not in more)
                    parts: _Pieces = {i: [(s, k, count + 1)] for k, i in enumerate((t, *more))}
                    for rest in _matchings(tuple(q for q in sources if q != s), left, source, target):
                        yield {**parts, **rest}


def _owner(pieces: _Pieces, piece: tuple[int, int, int]) -> int:
    return next(t for t, own in pieces.items() if piece in own)


def same_places(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether y holds the elements of x in the same places, whatever the order of the axes."""
    return any(distance(seen, y) < _SAME for seen in layouts(x, y.shape))


def nearest(x: np.ndarray, like: np.ndarray) -> np.ndarray | None:
    """`x` in the layout of `like` that brings it nearest; None if the sizes differ."""
    found = list(layouts(x, like.shape))
    return min(found, key=lambda y: distance(y, like), default=None)


def distance(x: np.ndarray, y: np.ndarray) -> float:
    """Relative rms of the difference over what is finite in both, plus the fraction that is so in one."""
    both = np.isfinite(x) & np.isfinite(y)
    odd = 0.0 if both.all() else np.mean(_class(x) != _class(y))
    if not both.any():
        return float(odd)
    a, b = x[both], y[both]
    largest = max(np.abs(a).max(), np.abs(b).max())
    if not largest:
        return float(odd)
    a, b = a / largest, b / largest  # so that no square overflows
    scale = np.sqrt(np.mean(a * a) + np.mean(b * b))
    return float(np.sqrt(np.mean((a - b) ** 2)) / scale + odd)


def _class(x: np.ndarray) -> np.ndarray:
    """0 of what is finite; ∞, −∞ and NaN are told apart."""
    return np.where(np.isnan(x), 2.0, np.where(np.isinf(x), np.sign(x), 0.0))
