"""Each tap, the loss and each gradient of two sides, measured and judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from palm.compare.comparison import Finding, Kind, Nature
from palm.compare.conditioning import Conditioning
from palm.compare.excerpt import Excerpt
from palm.compare.probe import Arrays, Recording
from palm.config import PaLMConfig
from palm.params import DType, parameters
from palm.rounding import RATIO_BAR, UNIT_ROUNDOFF, rms, rounding_bound, rounding_ratio
from palm.taps import tap_names

Sides = tuple[Recording, Recording] | tuple[Excerpt, Excerpt]
# The rms of fewer numbers may by chance be so many times what is expected of it.
_FEW, _LUCK = 32, 3.0
# What a coarser type than bfloat16 would leave.
_BEYOND_BFLOAT16 = 4.0


@dataclass(frozen=True)
class Reading:
    """One side's value, and what its own program gives in float64, if that is known."""

    label: str
    dtype: DType
    value: np.ndarray
    own: np.ndarray | None

    @property
    def is_double(self) -> bool:
        """Whether it has no wider self to be measured against."""
        return self.dtype == "float64"

    @property
    def is_finite(self) -> bool:
        """Whether every number of the value is."""
        return bool(np.isfinite(np.asarray(self.value, np.float64)).all())


@dataclass(frozen=True)
class Limits:
    """Largest relative errors that rounding explains: each side's, a float64 program's, any program's."""

    sides: tuple[float, float]
    double: float
    widest: float

    def times(self, slack: float) -> Limits:
        """All of them, `slack` times as large."""
        a, b = self.sides
        return Limits((a * slack, b * slack), self.double * slack, self.widest * slack)

    def amplified(
        self,
        bound_of: Callable[[float, float, DType], float],
        errors: Sequence[float],
        readings: Sequence[Reading],
    ) -> Limits:
        """With what the function amplifies allowed to each side: `bound_of(error, bound, dtype)`."""
        a, b = (
            bound_of(error, bound, reading.dtype)
            for error, bound, reading in zip(errors, self.sides, readings, strict=True)
        )
        factor = max(1.0, *(new / old for new, old in zip((a, b), self.sides, strict=True)))
        return Limits((a, b), self.double * factor, self.widest * factor)


def recording_findings(
    a: Recording, b: Recording, taps: Arrays, loss: float, grads: Arrays, conditioning: Conditioning
) -> Iterable[Finding]:
    """Taps, loss and gradients of two recordings, judged by the referee's `taps`, `loss` and `grads`.

    `conditioning`: what the referee amplifies, asked where a side is beyond its bound.
    """
    sides = (a, b)
    for name in tap_names(a.config.depth):
        readings = [_reading(side, side.taps[name], side.exact_taps[name]) for side in sides]
        yield finding(name, "tap", readings, taps[name], _tap_limits(name, sides), conditioning)
    limits = _backward_limits(sides)
    readings = [_reading(side, np.array(side.loss), np.array(side.exact_loss)) for side in sides]
    yield finding("loss", "loss", readings, np.array(loss), limits, conditioning)
    largest = max(rms(gradient) for gradient in grads.values())
    for full in backward_order(a.config):
        name = full.removeprefix("grad:")
        gradient = grads[name]
        if name in a.grads and name in b.grads:
            readings = [_reading(side, side.grads[name], side.exact_grads[name]) for side in sides]
            slack = _slack(largest, rms(gradient))
            yield finding(full, "gradient", readings, gradient, limits.times(slack), conditioning)


def excerpt_findings(a: Excerpt, b: Excerpt) -> Iterable[Finding]:
    """The same of two excerpts, from their sketches; each side's own float64 program stands for the referee.

    Where a side has none, the bound stands for its own rounding.
    """
    sides = (a, b)
    gradients = [name for name in backward_order(a.config) if name in a.sketches and name in b.sketches]
    largest = max(a.statistics[name]["rms"] for name in gradients)
    for name in (*tap_names(a.config.depth), "loss", *gradients):
        if name == "loss":
            readings = [_reading(side, np.array(side.loss), None) for side in sides]
            yield finding(name, "loss", readings, None, _backward_limits(sides))
            continue
        readings = [_reading(side, side.sketches[name], side.exact_sketches.get(name)) for side in sides]
        if name in gradients:
            limits = _backward_limits(sides).times(_slack(largest, a.statistics[name]["rms"]))
            found = finding(name, "gradient", readings, None, limits)
        else:
            limits = _tap_limits(name, sides)
            found = finding(name, "tap", readings, None, limits)
        yield _with_statistics(found, (a, b), limits)


def backward_order(config: PaLMConfig) -> list[str]:
    """The gradients, `grad:NAME`, as the backward pass comes to them: the first fault is where it begins."""
    return [f"grad:{name}" for name in reversed(list(parameters(config)))]


def finding(
    name: str,
    kind: Kind,
    readings: Sequence[Reading],
    exact: np.ndarray | None,
    limits: Limits,
    conditioning: Conditioning | None = None,
) -> Finding:
    """Measure one value of two sides. `exact`: the referee's; without it each side's own float64 judges."""
    a = readings[0]
    wide_a, wide_b = (np.asarray(reading.value, np.float64) for reading in readings)
    judges = [reading.own if exact is None else exact for reading in readings]
    unit = exact if exact is not None else a.own if a.own is not None else wide_a
    scale = rms(unit) or 1.0
    errors = [
        math.nan if judge is None else rms(wide - judge) / scale
        for wide, judge in zip((wide_a, wide_b), judges, strict=True)
    ]
    if exact is not None and conditioning is not None:
        limits = limits.amplified(
            lambda error, bound, dtype: conditioning.bound(name, kind, exact, scale, error, bound, dtype),
            errors,
            readings,
        )
    own = [
        # A float64 side has no wider self to be measured against; the referee stands in for it, or the bound.
        (bound if exact is None else error)
        if reading.is_double
        else bound
        if reading.own is None
        else rms(wide - reading.own) / scale
        for reading, wide, error, bound in zip(readings, (wide_a, wide_b), errors, limits.sides, strict=True)
    ]
    cross = rms(wide_a - wide_b) / scale
    # What float64 itself rounds between a* and b* is no difference.
    ratio = rounding_ratio(cross, math.hypot(own[0], UNIT_ROUNDOFF["float64"]), own[1])
    fault: str | None = None
    nature: Nature | None = None
    if told := _outside(readings, errors, limits.sides, ratio):
        fault = "; ".join(told)
        nature = _nature(readings, errors, exact, ratio, cross, scale, limits)
        if nature == "rounding" and wide_a.size < _FEW and max(errors) <= _LUCK * max(limits.sides):
            nature = "too few numbers"
    else:
        for reading, rounding, bound in zip(readings, own, limits.sides, strict=True):
            if not rounding <= bound:
                nature = "unproven"
                fault = (
                    f"{reading.label} is {rounding:.1e} from its own float64 program where rounding allows "
                    f"{bound:.1e}"
                )
    return Finding(name, kind, errors[0], errors[1], cross, ratio, *limits.sides, wide_a.size, fault, nature)


def _outside(
    readings: Sequence[Reading], errors: Sequence[float], bounds: Sequence[float], ratio: float
) -> list[str]:
    """In words, what is more than rounding; nothing if nothing is."""
    not_finite = [reading.label for reading in readings if not reading.is_finite]
    if not_finite:
        return [f"{' and '.join(not_finite)} {'are' if len(not_finite) > 1 else 'is'} not finite"]
    told = [
        f"{reading.label} is {error:.1e} from the referee where rounding allows {bound:.1e}"
        for reading, error, bound in zip(readings, errors, bounds, strict=True)
        if error > bound
    ]
    if not ratio <= RATIO_BAR:
        further = f", {readings[int(errors[1] > errors[0])].label} further from the referee"
        known = all(map(math.isfinite, errors))
        told.insert(0, f"{ratio:.3g} times their rounding apart{further if known else ''}")
    return told


def _nature(
    readings: Sequence[Reading],
    errors: Sequence[float],
    exact: np.ndarray | None,
    ratio: float,
    cross: float,
    scale: float,
    limits: Limits,
) -> Nature:
    finite = [reading.is_finite for reading in readings]
    if not all(finite):
        return "function" if any(finite) else "both not finite"
    if not ratio <= RATIO_BAR:
        # Without a float64 program the ratio is one to what rounding allows, and proves nothing by itself.
        proven = all(reading.own is not None for reading in readings) or cross > limits.widest
        return "function" if proven else "rounding"
    for reading, error, bound in zip(readings, errors, limits.sides, strict=True):
        if error > bound:
            wrong = (
                exact is not None
                and reading.own is not None
                and not reading.is_double
                and rms(np.asarray(reading.own, np.float64) - exact) / scale > limits.double
            )
            if wrong or reading.is_double or error > limits.widest:
                return "function"
    return "rounding"


def _with_statistics(found: Finding, sides: tuple[Excerpt, Excerpt], limits: Limits) -> Finding:
    """A finding of one sequence, and what the statistics of all sequences say besides."""
    ours, theirs = (side.statistics[found.name] for side in sides)
    size = math.prod(ours["shape"])
    if found.fault:
        return replace(found, elements=size)
    lost = [side.label for side, own in zip(sides, (ours, theirs), strict=True) if own["not_finite"]]
    if lost:
        nature: Nature = "both not finite" if len(lost) == 2 else "function"
        return replace(found, elements=size, fault=f"{' and '.join(lost)} not finite", nature=nature)
    # |rms(a) − rms(b)| ≤ rms(a − b) ≤ what rounding leaves of both.
    apart = abs(ours["rms"] - theirs["rms"]) / (ours["rms"] or 1.0)
    if apart > sum(limits.sides):
        told = (
            f"over all sequences the rms differs by {apart:.1e} where rounding allows {sum(limits.sides):.1e}"
        )
        nature = "function" if apart > 2 * limits.widest else "rounding"
        return replace(found, elements=size, fault=told, nature=nature)
    return replace(found, elements=size)


def _reading(side: Recording | Excerpt, value: np.ndarray, own: np.ndarray | None) -> Reading:
    return Reading(side.label, side.dtype, value, own)


def _slack(largest: float, this: float) -> float:
    """Where a gradient nearly cancels, what rounding leaves is of the size of those that do not."""
    return max(1.0, largest / (this or 1.0))


def _tap_limits(name: str, sides: Sides) -> Limits:
    depth, length = sides[0].config.depth, sides[0].tokens.shape[-1]
    blocks = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else depth * (name != "embed")
    return _limits(sides, length, blocks)


def _backward_limits(sides: Sides) -> Limits:
    # Forward and back again: twice the depth; and sums over the vocabulary and over all positions besides.
    config, tokens = sides[0].config, sides[0].tokens
    return _limits(sides, tokens.size + config.num_tokens, 2 * config.depth)


def _limits(sides: Sides, terms: int, blocks: int) -> Limits:
    def bound(side: Any, dtype: Any) -> float:
        return rounding_bound(side.config, dtype, terms, blocks)

    a, b = (bound(side, side.dtype) for side in sides)
    widest = max(bound(sides[0], "bfloat16"), _BEYOND_BFLOAT16 * max(a, b))
    return Limits((a, b), bound(sides[0], "float64"), widest)
