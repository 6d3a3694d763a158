"""Where a side departs from the specification: every operation run again from the side's own inputs.

A fault is passed on, so of the taps that differ only the first one says where. What no fault upstream can
touch is a single operation: the referee's, from what *this side* had recorded before it, against what it
recorded behind it. A second fault in a later block shows as clearly as the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from palm.compare import conditioning
from palm.compare.probe import Recording
from palm.compare.program import REFEREE, Place, place
from palm.rounding import rms, rounding_bound
from palm.taps import tap_names


@dataclass(frozen=True)
class Departure:
    """One operation of one side that is not the referee's, from the side's own inputs.

    `deviation`: relative rms distance between what the side and what the referee makes of the inputs.
    `bound`: what rounding explains of it. `place` and `value` are the inputs and the side's output.
    """

    side: str
    tap: str
    deviation: float
    bound: float
    place: Place = field(repr=False)
    value: np.ndarray = field(repr=False)

    @property
    def operation(self) -> str:
        """The kind of the tap, whatever its block."""
        return self.tap.rpartition(".")[2]


def departures(side: Recording) -> Iterator[Departure]:
    """In dataflow order, the operations of which rounding does not explain what they gave.

    None if the recording lacks taps: each is the input of others.
    """
    if not side.taps.keys() >= set(tap_names(side.config.depth)):
        return
    weights = {name: np.asarray(array, np.float64) for name, array in side.weights.items()}
    for tap in tap_names(side.config.depth):
        kind, at = place(tap, side.config, weights, side.taps, side.tokens)
        value = np.asarray(side.taps[tap], np.float64)
        operation = REFEREE[kind]
        found = deviation(value, operation(at))
        # One operation, from inputs that are exact: no block lies before it.
        bound = rounding_bound(side.config, side.dtype, side.tokens.shape[-1], 0)
        bound = conditioning.of_operation(operation, at, side.dtype, found, bound)
        if not found <= bound:
            yield Departure(side.label, tap, found, bound, at, value)


def deviation(value: np.ndarray, expected: np.ndarray) -> float:
    """Relative rms distance; NaN if either is not finite."""
    with np.errstate(invalid="ignore"):
        return rms(value - expected) / (rms(expected) or 1.0)
