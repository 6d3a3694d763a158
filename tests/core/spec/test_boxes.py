"""Boxes of a tensor: overlaps, and whether pieces cover it exactly once, against counting each element."""

import random

import numpy as np
import pytest
from cases import at_most

from palm.spec.boxes import Box, miscovered, read_into


def whole(*shape: int) -> Box:
    return Box((0,) * len(shape), shape)


def parts(rng: random.Random, box: Box, depth: int = 4) -> list[Box]:
    """The box, cut at random again and again: also in ways that no grid has."""
    axis = rng.randrange(len(box.shape))
    if not depth or box.shape[axis] == 1:
        return [box]
    at = rng.randint(1, box.shape[axis] - 1)
    cuts = []
    for first, last in ((0, at), (at, box.shape[axis])):
        start, shape = list(box.start), list(box.shape)
        start[axis] += first
        shape[axis] = last - first
        cuts.append(Box(tuple(start), tuple(shape)))
    return [part for cut in cuts for part in parts(rng, cut, depth - 1)]


def counts(boxes: list[Box], shape: tuple[int, ...]) -> np.ndarray:
    found = np.zeros(shape, int)
    for box in boxes:
        found[box.within(whole(*shape))] += 1
    return found


@pytest.mark.parametrize("shape", [(7,), (5, 9), (4, 3, 5)])
def test_pieces_cover_a_tensor_once_or_the_first_wrong_element_is_named(shape):
    rng = random.Random(str(shape))
    outcomes = set()
    for _ in range(300):
        boxes = parts(rng, whole(*shape))
        rng.shuffle(boxes)
        change = rng.choice(["none", "drop", "twice", "other"])
        if change == "drop":
            boxes.pop()
        elif change == "twice":
            boxes.append(rng.choice(boxes))
        elif change == "other":  # as many elements may be covered as before
            boxes[0] = rng.choice(parts(rng, whole(*shape)))
        found = counts(boxes, shape)
        wrong = np.argwhere(found != 1)
        expected = (tuple(wrong[0].tolist()), int(found[tuple(wrong[0])])) if len(wrong) else None
        assert miscovered(boxes, shape) == expected
        outcomes.add(None if expected is None else expected[1])
    assert {None, 0, 2} <= outcomes


def test_a_gap_beside_an_overlap_of_its_size_is_found():
    """The number of elements alone would not show it."""
    assert miscovered([Box((0, 0), (2, 4)), Box((1, 0), (2, 4))], (4, 4)) == ((1, 0), 2)
    assert miscovered([], (2, 2)) == ((0, 0), 0)


def test_a_hundred_thousand_pieces_take_a_moment():
    boxes = [Box((row, column * 3), (1, 3)) for row in range(1000) for column in range(100)]
    with at_most(20):
        assert miscovered(boxes, (1000, 300)) is None
        assert miscovered(boxes[:-1], (1000, 300)) == ((999, 297), 0)


def test_the_overlap_of_two_boxes_is_in_both():
    rng = random.Random(0)
    for _ in range(200):
        one, other = (rng.choice(parts(rng, whole(6, 8))) for _ in range(2))
        both = counts([one, other], (6, 8)) == 2
        found = one.overlap(other)
        assert (found is None) == (not both.any())
        if found is not None:
            assert np.array_equal(counts([found], (6, 8)) == 1, both)


@pytest.mark.parametrize(
    ("box", "is_inside"),
    [
        (Box((0, 0), (2, 3)), True),
        (Box((1, 2), (1, 1)), True),
        (Box((1, 2), (1, 2)), False),
        (Box((-1, 0), (1, 1)), False),
        (Box((0, 0), (0, 3)), False),
        (Box((0,), (2,)), False),
        (Box((0, 0), (2,)), False),
    ],
)
def test_a_box_fits_if_it_lies_inside_and_has_elements(box, is_inside):
    assert box.fits((2, 3)) == is_inside


def test_a_room_is_filled_by_what_can_read_straight_into_it():
    class Straight:
        """Gives no array of its own."""

        def read_into(self, room, at):
            room[...] = np.arange(20).reshape(4, 5)[at]

    at, array = (slice(1, 3), slice(2, 5)), np.arange(20).reshape(4, 5)
    for source in (array, Straight()):
        room = np.zeros((3, 2), int).T
        read_into(room, source, at)
        assert np.array_equal(room, array[at])
