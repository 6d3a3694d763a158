"""How far from the referee rounding explains that a side is, at each tap, the loss and each gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palm.parity.judge.need import CERTAIN, FACTOR
from palm.parity.recording.excerpt import Excerpt
from palm.parity.recording.recording import Recording
from palm.spec.rounding import rounding_bound

Sides = tuple[Recording, Recording] | tuple[Excerpt, Excerpt]
# Where the function amplifies rounding to this, nothing can be told from a smaller error.
SENSELESS = 0.5
# What a coarser type than bfloat16 would leave.
_BEYOND_BFLOAT16 = 4.0


@dataclass(frozen=True)
class Bounds:
    """Largest relative errors that rounding explains: each side's, a float64 program's, any program's.

    `cancelled`: how many times as large they are as those of a value in which nothing cancels.
    """

    sides: tuple[float, float]
    double: float
    widest: float
    cancelled: float = 1.0

    def times(self, factor: float) -> Bounds:
        """Of a value that `factor` times larger ones cancel to."""
        a, b = self.sides
        return Bounds((a * factor, b * factor), self.double * factor, self.widest * factor, factor)

    @property
    def usual(self) -> tuple[float, float]:
        """Of each side, if nothing cancelled."""
        return self.sides[0] / self.cancelled, self.sides[1] / self.cancelled


def cancellation(largest: float, this: float) -> float:
    """Where a gradient nearly cancels, what rounding leaves is of the size of those that do not."""
    return max(1.0, largest / (this or largest or 1.0))


def is_excused(
    errors: Sequence[float], allowed: Sequence[float], bounds: Sequence[float], usual: Sequence[float]
) -> bool:
    """Whether a side is beyond only the cap on what amplification allows, or nothing is certain."""
    beyond = [i for i in range(2) if errors[i] > bounds[i]]
    return bool(beyond) and not any(is_certain(errors[i], allowed[i], usual[i]) for i in beyond)


def is_certain(error: float, allowed: float, usual: float) -> bool:
    """Whether an error is more than what amplification allows.

    What is `allowed` beyond the `usual`, because the function amplifies rounding or because larger values
    cancel, is an estimate from the size of random errors, FACTOR times the need, and no upper limit: below
    CERTAIN times the need nothing is proven, see `judge.need`. Where no digit is left, its size proves
    nothing at all; the sides' float64 programs, which have digits left, still may.
    """
    if allowed >= SENSELESS:
        return False
    return not error <= (CERTAIN / FACTOR * allowed if allowed > usual else allowed)


def tap_bounds(name: str, sides: Sides) -> Bounds:
    """Of a tap, by the blocks before it."""
    depth, length = sides[0].config.depth, sides[0].tokens.shape[-1]
    blocks = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else depth * (name != "embed")
    return _bounds(sides, length, blocks)


def backward_bounds(sides: Sides) -> Bounds:
    """Of the loss and the gradients."""
    # Forward and back again: twice the depth; and sums over the vocabulary and over all positions besides.
    config, tokens = sides[0].config, sides[0].tokens
    return _bounds(sides, tokens.size + config.num_tokens, 2 * config.depth)


def _bounds(sides: Sides, terms: int, blocks: int) -> Bounds:
    def bound(side: Any, dtype: Any) -> float:
        return rounding_bound(side.config, dtype, terms, blocks)

    a, b = (bound(side, side.dtype) for side in sides)
    widest = max(bound(sides[0], "bfloat16"), _BEYOND_BFLOAT16 * max(a, b))
    return Bounds((a, b), bound(sides[0], "float64"), widest)
