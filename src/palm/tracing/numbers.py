"""Numbers that a program holds in a low precision, as precise as they were written."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from fractions import Fraction

import numpy as np

from palm.tracing.operation import Operation

_LARGEST_DENOMINATOR = 256


def settled(x: np.ndarray, numbers: Collection[float]) -> float:
    """What a single number was before it was rounded to its dtype: one of `numbers`, if one rounds to it.

    These are the other program's. A difference of numbers that rounding to the dtype removes cannot be told.
    """
    exact = float(x.ravel()[0])
    written = as_written(np.float32(exact)) if x.dtype == np.float32 else exact
    with np.errstate(over="ignore"):
        same = [number for number in numbers if np.array(number).astype(x.dtype) == exact]
    if not same or any(math.isclose(number, written, rel_tol=1e-12) for number in same):
        return written
    return min(same, key=lambda number: abs(number - exact))


def numbers_of(operations: Iterable[Operation], fingerprints: np.ndarray) -> tuple[float, ...]:
    """The numbers that a program computes with, their reciprocals, and both with the other sign."""
    written = {abs(x) for op in operations for x in op.constants}
    written |= {
        float(found[1])
        for op, found in zip(operations, fingerprints, strict=True)
        if op.kind == "constant" and math.prod(op.shape) == 1
    }
    usable = {x for x in written if 0 < x < math.inf}
    usable |= {1 / x for x in usable if 1 / x < math.inf}
    return tuple(sorted(usable | {-x for x in usable}))


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
