"""For your own tests: two sides agree to rounding, or the failure says where they differ and why."""

from __future__ import annotations

from typing import Any

import numpy as np

from palm.errors import PalmError
from palm.parity.compare import compare
from palm.spec.arrays import as_numpy
from palm.spec.rounding import rms, rounding_ratio

__all__ = ["assert_agree", "ratio"]


def assert_agree(a: Any, b: Any, tokens: Any) -> None:
    """Raise `AssertionError`, whose message is verdict and causes, unless `palm.compare` finds agreement.

    Two models of palm's, or recordings of them, or one such model and a function from ids to the logits of a
    model that is not palm's. Raises what `palm.compare` raises.
    """
    __tracebackhide__ = True  # pytest shows the caller's line, not this frame
    try:
        found = compare(a, b, tokens)
    except PalmError as error:
        raise error.with_traceback(None)  # noqa: B904 - the message says it all; what caused it stays
    if not found.agree:
        causes = [diagnosis.sentence for diagnosis in getattr(found, "diagnoses", ())]
        raise AssertionError("\n".join([found.verdict, *causes]))


def ratio(a: Any, b: Any, exact_a: Any, exact_b: Any = None) -> float:
    """How much further apart two arrays are than their own rounding errors put them.

        rms(a − b) / sqrt(rms(a − a*)² + rms(b − b*)²)

    with a*, b* the same two programs in float64 (b* = a* if it is not given). At most √2 if both compute the
    same function, whatever their rounding, and about 1 if their errors are independent; above 1.5 they do
    not. 0 if they are equal. With one common exact array it cannot exceed √2 and proves nothing: give both.
    Arrays are NumPy's or either framework's, on any device. See `palm.spec.rounding`.
    """
    given = (a, b, exact_a, exact_a if exact_b is None else exact_b)
    wide = [as_numpy(x)[0].astype(np.float64) for x in given]
    return rounding_ratio(rms(wide[0] - wide[1]), rms(wide[0] - wide[2]), rms(wide[1] - wide[3]))
