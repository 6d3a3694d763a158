"""Numbers that a program holds in float32, as precise as they were written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

_LARGEST_DENOMINATOR = 256


def as_written(x: np.float32) -> float:
    """The number that was probably written: 0.1, 1/3, √8 for the float32 nearest to it.

    Each candidate rounds to `x`, so that none is further off than float32 itself. The order is: at most six
    decimal digits, a fraction, a root of one, and else the float32 number itself.
    """
    exact = float(x)
    if not math.isfinite(exact) or exact == 0:
        return exact
    return next((value for value in _candidates(exact, str(x)) if np.float32(value) == x), exact)


def _candidates(exact: float, decimals: str) -> Iterator[float]:
    mantissa = decimals.lower().split("e")[0].replace(".", "").strip("-0")
    if len(mantissa) <= 6:
        yield float(decimals)
    yield float(Fraction(exact).limit_denominator(_LARGEST_DENOMINATOR))
    yield (
        float(1 / nearest)
        if (nearest := Fraction(1 / exact).limit_denominator(_LARGEST_DENOMINATOR))
        else exact
    )
    square = Fraction(exact * exact)
    yield math.copysign(math.sqrt(square.limit_denominator(_LARGEST_DENOMINATOR)), exact)
    inverse = (1 / square).limit_denominator(_LARGEST_DENOMINATOR)
    yield math.copysign(math.sqrt(1 / inverse), exact) if inverse else exact
