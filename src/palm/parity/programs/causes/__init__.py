"""Why two programs part, told without knowing what they are: the first cause that the values prove."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from palm.parity.programs.causes.additions import added
from palm.parity.programs.causes.cause import Cause
from palm.parity.programs.causes.operations import (
    exchanged,
    mask,
    operations,
    reordered,
    rounding,
    shape,
    whole,
)
from palm.parity.programs.causes.order import another, arrangement, elements, operand
from palm.parity.programs.causes.values import constants, factor, function, leaf
from palm.parity.programs.evidence import Evidence

# The order is that of how much each says: what is proved by a number comes before what is only counted.
_TESTS: tuple[Callable[[Evidence], Iterator[Cause]], ...] = (
    *(leaf, rounding, mask, function, constants, added, factor),
    *(arrangement, elements, exchanged, reordered, operand, shape, whole, another, operations),
)


def cause_of(found: Evidence) -> Cause | None:
    """The first cause that the values prove; None if none does."""
    with np.errstate(all="ignore"):
        return next((cause for test in _TESTS for cause in test(found)), None)
