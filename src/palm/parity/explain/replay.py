"""Where a side departs from the specification: every operation run again from the side's own inputs.

A fault is passed on, so of the taps that differ only the first one says where. What no fault upstream can
touch is a single operation: the referee's, from what *this side* had recorded before it, against what it
recorded behind it. A second fault in a later block shows as clearly as the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from palm.config import DType
from palm.parity.judge import conditioning
from palm.parity.recording.recording import Recording
from palm.spec.arrays import Named
from palm.spec.forward import REFEREE, Place, place
from palm.spec.rounding import rms, rounding_bound
from palm.spec.taps import kind_of, tap_names


@dataclass(frozen=True)
class Departure:
    """One operation of one side that is not the referee's, from the side's own inputs.

    `distance`: relative rms distance between what the side and what the referee makes of the inputs.
    `bound`: what rounding explains of it, in float64 where the side's float64 program departs alike. `place`
    and `value` are the inputs and the side's output.
    """

    side: str
    tap: str
    distance: float
    bound: float
    place: Place = field(repr=False)
    value: np.ndarray = field(repr=False)

    @property
    def operation(self) -> str:
        """The kind of the tap, whatever its block."""
        return kind_of(self.tap)


def departures(side: Recording) -> Iterator[Departure]:
    """In dataflow order, the operations of which rounding does not explain what they gave.

    A wrong function is wrong in the side's float64 program too, which shows it, and tells it from others,
    down to float64's rounding. What shows in working precision only is a precision that is lost there.
    None if the recording lacks taps: each is the input of others.
    """
    if not side.taps.keys() >= set(tap_names(side.config.depth)):
        return
    weights = side.weights  # each is upcast where it is used: not all at once
    for tap in tap_names(side.config.depth):
        working = _departure(side, tap, weights, side.taps, side.dtype)
        # An excerpt's beginning has none.
        exact = _departure(side, tap, weights, side.exact_taps, "float64") if side.exact_taps else None
        # What departs little in float64 is not what departs much in working precision.
        if exact is not None and not (working and exact.distance < 0.5 * working.distance):
            yield exact
        elif working is not None:
            yield working


def _departure(side: Recording, tap: str, weights: Named, taps: Named, dtype: DType) -> Departure | None:
    """The departure of one operation from these taps, if there is one."""
    at = place(tap, side.config, weights, taps, side.tokens)
    operation, value = REFEREE[kind_of(tap)], np.asarray(taps[tap], np.float64)
    found = distance(value, operation(at))
    # One operation, from inputs that are exact: no block lies before it.
    bound = rounding_bound(side.config, dtype, side.tokens.shape[-1], 0)
    bound = conditioning.of_operation(operation, at, dtype, found, bound)
    return None if found <= bound else Departure(side.label, tap, found, bound, at, value)


def distance(value: np.ndarray, expected: np.ndarray) -> float:
    """Relative rms distance; NaN if either is not finite."""
    with np.errstate(invalid="ignore"):
        return rms(value - expected) / (rms(expected) or 1.0)
