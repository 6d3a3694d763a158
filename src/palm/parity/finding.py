"""One value of two sides, measured and judged: the smallest part of an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["tap", "loss", "gradient"]
Nature = Literal["function", "rounding", "both not finite", "unproven", "too few numbers"]
Outcome = Literal["agree", "differ by rounding more than expected", "differ", "cannot tell"]


@dataclass(frozen=True)
class Finding:
    """One tap, the loss, or one gradient, measured. All numbers are relative to the rms of the referee's.

    `error_a`, `error_b`: distance of each side from the float64 referee. `cross`: distance between the two.
    `ratio`: cross over both sides' own rounding. `bound_a`, `bound_b`: largest error that rounding explains.
    `elements`: how many numbers these are the rms of. `fault`: None, or in words what is more than rounding.
    `nature`: what the fault proves:

    - "function": the sides compute different functions, or one computes another than the specification.
    - "rounding": the function is right, a side loses more of it than its dtype explains.
    - "both not finite", "unproven", "too few numbers": nothing. "unproven": a side's float64 program is not
      what the side computes, so its own rounding is unknown.
    """

    name: str
    kind: Kind
    error_a: float
    error_b: float
    cross: float
    ratio: float
    bound_a: float
    bound_b: float
    elements: int
    fault: str | None
    nature: Nature | None
