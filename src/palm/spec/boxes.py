"""Boxes of a tensor: what lies where, and whether pieces cover a tensor exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import product
from typing import NamedTuple, Protocol

import numpy as np

from palm.memory import put


class Box(NamedTuple):
    """The elements of a tensor from `start` on, `shape` of them along each dimension."""

    start: tuple[int, ...]
    shape: tuple[int, ...]

    def overlap(self, other: Box) -> Box | None:
        """What lies in both; None if nothing does."""
        spans = [
            (max(a, b), min(a + m, b + n))
            for a, m, b, n in zip(self.start, self.shape, other.start, other.shape, strict=True)
        ]
        if any(first >= last for first, last in spans):
            return None
        return Box(tuple(first for first, _ in spans), tuple(last - first for first, last in spans))

    def within(self, other: Box) -> tuple[slice, ...]:
        """Where this box is in an array that holds `other`."""
        return tuple(
            slice(a - b, a - b + n) for a, b, n in zip(self.start, other.start, self.shape, strict=True)
        )

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it lies in a tensor of that shape, and has any elements."""
        return len(self.start) == len(self.shape) == len(shape) and all(
            a >= 0 and n > 0 and a + n <= size
            for a, n, size in zip(self.start, self.shape, shape, strict=True)
        )


def box_of(at: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
    """The box of a tensor of that shape that slices without a step mean."""
    spans = [part.indices(size)[:2] for part, size in zip(at, shape, strict=True)]
    return Box(tuple(first for first, _ in spans), tuple(last - first for first, last in spans))


class Sliceable(Protocol):
    """What gives the elements of a part: an array, or a tensor of a checkpoint, which reads them then."""

    def __getitem__(self, at: tuple[slice, ...], /) -> np.ndarray:
        """The elements in these slices, one for each dimension."""


def read_into(room: np.ndarray, source: Sliceable, at: tuple[slice, ...]) -> None:
    """Fill an array with the elements of a part, which may be read straight into it.

    A source that can do that has a method of the same name, which takes `room` and `at`. Raises what the
    source raises.
    """
    straight = getattr(source, "read_into", None)
    if straight is None:
        put(room, source[at])
    else:
        straight(room, at)


class Rows(Protocol):
    """Rows of ids, which may be read only when they are asked for; an array of them is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """How many rows there are, and how long each one is."""

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Some of the rows. Shape (…, n), int64."""


class Piece(NamedTuple):
    """A box of a tensor of that canonical name: where it starts, and its elements in canonical layout."""

    name: str
    start: tuple[int, ...]
    array: np.ndarray


def miscovered(boxes: Iterable[Box], shape: tuple[int, ...]) -> tuple[tuple[int, ...], int] | None:
    """The first element of a tensor that does not lie in exactly one of the boxes, and in how many it does.

    None if all do. The boxes must fit. The time is linear in their number.
    """
    # How often an element is covered is the sum over the corners that lie nowhere beyond it: +1 for where
    # boxes start, −1 where they end, the product over the dimensions. So boxes cover the tensor once if they
    # leave, corner by corner, what it leaves itself. Before the first corner where they do not, all is right.
    corners = Counter[tuple[int, ...]]()
    for box in boxes:
        _add_corners(corners, box, 1)
    _add_corners(corners, Box((0,) * len(shape), shape), -1)
    found = min((corner for corner, count in corners.items() if count), default=None)
    return None if found is None else (found, 1 + corners[found])


def _add_corners(corners: Counter[tuple[int, ...]], box: Box, sign: int) -> None:
    sides = [((a, 1), (a + n, -1)) for a, n in zip(box.start, box.shape, strict=True)]
    for corner in product(*sides):
        count = sign
        for _, of_side in corner:
            count *= of_side
        corners[tuple(at for at, _ in corner)] += count
