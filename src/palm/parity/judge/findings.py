"""Each tap, the loss and each gradient of two sides, measured and judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from palm.config import DType, PaLMConfig
from palm.parity.finding import Finding, Kind, Nature
from palm.parity.judge.bounds import (
    SENSELESS,
    Bounds,
    backward_bounds,
    cancellation,
    is_certain,
    is_excused,
    tap_bounds,
)
from palm.parity.judge.conditioning import Conditioning
from palm.parity.recording.excerpt import Excerpt
from palm.parity.recording.recording import Recording
from palm.spec.arrays import Named
from palm.spec.parameters import parameters
from palm.spec.rounding import RATIO_BAR, UNIT_ROUNDOFF, rms, rounding_ratio
from palm.spec.taps import tap_names

# The rms of fewer numbers may by chance be so many times what is expected of it.
_FEW, _LUCK = 32, 3.0
# A float32 or bfloat16 result that is exact, as a lookup is, or a float64 one that the referee rounds alike.
_NO_ROUNDING = 4 * UNIT_ROUNDOFF["float64"]


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


def recording_findings(
    a: Recording,
    b: Recording,
    taps: Named,
    loss: float,
    grads: Named,
    conditioning: Conditioning,
    *,
    same_model: bool,
) -> Iterable[Finding]:
    """Taps, loss and gradients of two recordings, judged by the referee's `taps`, `loss` and `grads`.

    `conditioning`: what the referee amplifies, asked where a side is beyond its bound. `same_model`: whether
    weights and config are the same. If not, the referee has those of a, and b is further from it for that.
    """
    sides = (a, b)
    finding = partial(_finding, same_model=same_model)
    for name in tap_names(a.config.depth):
        readings = [_reading(side, side.taps[name], side.exact_taps[name]) for side in sides]
        yield finding(name, "tap", readings, taps[name], tap_bounds(name, sides), conditioning)
    base = backward_bounds(sides)
    readings = [_reading(side, np.array(side.loss), np.array(side.exact_loss)) for side in sides]
    yield finding("loss", "loss", readings, np.array(loss), base, conditioning)
    largest = max(rms(gradient) for gradient in grads.values())
    for full in backward_order(a.config):
        name = full.removeprefix("grad:")
        gradient = grads[name]
        if name in a.grads and name in b.grads:
            readings = [_reading(side, side.grads[name], side.exact_grads[name]) for side in sides]
            factor = cancellation(largest, rms(gradient))
            yield finding(full, "gradient", readings, gradient, base.times(factor), conditioning)


def excerpt_findings(a: Excerpt, b: Excerpt, *, same_model: bool) -> Iterable[Finding]:
    """The same of two excerpts, from their sketches; each side's own float64 program stands for the referee.

    Where a side has none, the bound stands for its own rounding.
    """
    sides = (a, b)
    finding = partial(_finding, same_model=same_model)
    gradients = [name for name in backward_order(a.config) if name in a.sketches and name in b.sketches]
    largest = max(a.statistics[name]["rms"] for name in gradients)
    for name in (*tap_names(a.config.depth), "loss", *gradients):
        if name == "loss":
            readings = [_reading(side, np.array(side.loss), None) for side in sides]
            yield finding(name, "loss", readings, None, backward_bounds(sides))
            continue
        readings = [_reading(side, side.sketches[name], side.exact_sketches.get(name)) for side in sides]
        if name in gradients:
            base = backward_bounds(sides).times(cancellation(largest, a.statistics[name]["rms"]))
            found = finding(name, "gradient", readings, None, base)
        else:
            base = tap_bounds(name, sides)
            found = finding(name, "tap", readings, None, base)
        yield _with_statistics(found, (a, b), base)


def backward_order(config: PaLMConfig) -> list[str]:
    """The gradients, `grad:NAME`, as the backward pass comes to them: the first fault is where it begins."""
    return [f"grad:{name}" for name in reversed(list(parameters(config)))]


def _finding(
    name: str,
    kind: Kind,
    readings: Sequence[Reading],
    exact: np.ndarray | None,
    base: Bounds,
    conditioning: Conditioning | None = None,
    *,
    same_model: bool,
) -> Finding:
    """Measure one value of two sides. `exact`: the referee's; without it each side's own float64 judges."""
    measured = _measure(readings, exact)

    def allow(error: float, bound: float, dtype: DType) -> float:
        if exact is None or conditioning is None:
            return bound
        return conditioning.bound(name, kind, exact, measured.scale, error, bound, dtype)

    allowed = [
        allow(error, bound, reading.dtype)
        for error, bound, reading in zip(measured.errors, base.sides, readings, strict=True)
    ]
    bounds = [min(most, max(bound, SENSELESS)) for most, bound in zip(allowed, base.sides, strict=True)]
    own = [
        # A float64 side has no wider self to be measured against; the referee stands in for it, or the bound.
        (bound if exact is None else error) if reading.is_double else bound if mine is None else mine
        for reading, mine, error, bound in zip(readings, measured.own, measured.errors, bounds, strict=True)
    ]
    # What float64 itself rounds between a* and b* is no difference.
    ratio = rounding_ratio(measured.cross, math.hypot(own[0], UNIT_ROUNDOFF["float64"]), own[1])
    fault, nature = _judge(
        readings,
        measured,
        bounds,
        own,
        ratio,
        base,
        allow,
        has_referee=exact is not None,
        is_excused=is_excused(measured.errors, allowed, bounds, base.usual),
        same_model=same_model,
    )
    a, b = measured.errors
    return Finding(
        name, kind, a, b, measured.cross, ratio, bounds[0], bounds[1], measured.size, fault, nature
    )


@dataclass(frozen=True)
class _Measured:
    """Relative distances: of each side from what judges it, from its own float64 program, from each other.

    `wrong`: in words, how far, and of how many programs' rounding: how the float64 programs are not alike.
    """

    scale: float
    size: int
    errors: tuple[float, float]
    own: tuple[float | None, float | None]
    cross: float
    wrong: tuple[tuple[str, float, int], ...]


def _measure(readings: Sequence[Reading], exact: np.ndarray | None) -> _Measured:
    values = [np.asarray(reading.value, np.float64) for reading in readings]
    programs = [None if r.own is None else np.asarray(r.own, np.float64) for r in readings]
    units = [exact] if exact is not None else [*values, *(own for own in programs if own is not None)]
    scale = max(rms(unit) for unit in units) or 1.0

    def apart(x: np.ndarray | None, y: np.ndarray | None) -> float:
        return math.nan if x is None or y is None else rms(x - y) / scale

    judges = [own if exact is None else exact for own in programs]
    errors = [apart(value, judge) for value, judge in zip(values, judges, strict=True)]
    own = [None if p is None else apart(value, p) for value, p in zip(values, programs, strict=True)]
    wrong = [
        (f"in float64, {reading.label} differs from the referee by {{:.1e}}", apart(program, exact), 1)
        for reading, program in zip(readings, programs, strict=True)
    ]
    wrong.append(("the float64 programs of the two sides differ by {:.1e}", apart(*programs), 2))
    told = tuple(entry for entry in wrong if not math.isnan(entry[1]))
    return _Measured(scale, values[0].size, (errors[0], errors[1]), (own[0], own[1]), apart(*values), told)


def _judge(
    readings: Sequence[Reading],
    measured: _Measured,
    bounds: Sequence[float],
    own: Sequence[float],
    ratio: float,
    base: Bounds,
    allow: Callable[[float, float, DType], float],
    *,
    has_referee: bool,
    is_excused: bool,
    same_model: bool,
) -> tuple[str | None, Nature | None]:
    """In words what is more than rounding, and what it proves; None and None if nothing is.

    `is_excused`: the function amplifies rounding so much here that a large error is nothing to tell by.
    """
    finite = [np.isfinite(np.asarray(reading.value, np.float64)) for reading in readings]
    if not all(mask.all() for mask in finite):
        lost = [r.label for r, mask in zip(readings, finite, strict=True) if not mask.all()]
        alike = bool((finite[0] == finite[1]).all())
        return _not_finite(lost), "both not finite" if alike else "function"
    reasons = []
    is_proven = False
    if not ratio <= RATIO_BAR:
        reasons.append(_apart(measured.cross, own, ratio, same_model=same_model))
        if same_model and has_referee and all(map(math.isfinite, measured.errors)):
            further = readings[int(measured.errors[1] > measured.errors[0])].label
            reasons[0] += f", and {further} is the one that is further from the referee"
        # Without a float64 program the ratio is one to what rounding allows, and proves nothing by itself.
        is_proven = None not in measured.own or measured.cross > base.widest
    for reading, error, bound, usual in zip(readings, measured.errors, bounds, base.sides, strict=True):
        if error > bound:
            judge = "the referee" if has_referee else "its own float64 program"
            reasons.append(_beyond(f"{reading.label} differs from {judge} by {error:.1e}", bound))
            # What the function amplifies of one type's rounding it amplifies of a coarser one's too.
            widest = base.widest * max(1.0, bound / usual)
            is_proven |= (reading.is_double or error > widest) and not is_excused
    for words, distance, programs in measured.wrong:
        bound = programs * base.double
        if distance > bound and distance > (most := allow(distance, bound, "float64")):
            sure = is_certain(distance, most, bound / base.cancelled)
            is_proven, is_excused = is_proven or sure, is_excused or not sure
            if ratio <= RATIO_BAR:  # else it is said already
                reasons.append(_beyond(words.format(distance), most))
    if reasons:
        is_unknown = is_excused or None in measured.own
        nature: Nature = "function" if is_proven else "unproven" if is_unknown else "rounding"
        farthest = max((e for e in measured.errors if not math.isnan(e)), default=measured.cross)
        if nature != "function" and measured.size < _FEW and farthest <= _LUCK * max(bounds):
            nature = "too few numbers"
        return "; ".join(reasons), nature
    for reading, rounding, bound in zip(readings, own, bounds, strict=True):
        if not rounding <= bound:
            words = f"{reading.label} differs from its own float64 program by {rounding:.1e}"
            return _beyond(words, bound), "unproven"
    return None, None


def _apart(cross: float, own: Sequence[float], ratio: float, *, same_model: bool) -> str:
    """How far two sides are apart, in words; a ratio to no rounding would be a number without a meaning."""
    if max(own) <= _NO_ROUNDING:
        unrounded = ", and neither has any rounding error here" if same_model else ""
        return f"the two differ by {cross:.1e}{unrounded}"
    return f"the two differ by {ratio:.3g} times their rounding"


def _beyond(words: str, bound: float) -> str:
    return f"{words}, but rounding explains at most {bound:.1e}"


def _not_finite(labels: Sequence[str]) -> str:
    return f"{' and '.join(labels)} {'are' if len(labels) > 1 else 'is'} not finite"


def _with_statistics(found: Finding, sides: tuple[Excerpt, Excerpt], base: Bounds) -> Finding:
    """A sketch's finding, and what the beginnings and the statistics, which hide nothing, say besides."""
    ours, theirs = (side.statistics[found.name] for side in sides)
    size = math.prod(ours["shape"])
    if found.fault:
        return replace(found, elements=size)
    lost = [side.label for side, own in zip(sides, (ours, theirs), strict=True) if own["not_finite"]]
    if lost:
        nature: Nature = "both not finite" if len(lost) == 2 else "function"
        return replace(found, elements=size, fault=_not_finite(lost), nature=nature)
    # |rms(a) − rms(b)| ≤ rms(a − b) ≤ what rounding leaves of both.
    apart = abs(ours["rms"] - theirs["rms"]) / (max(ours["rms"], theirs["rms"]) or 1.0)
    distances = {"over all sequences the rms": apart}
    if all(found.name in side.taps for side in sides):
        a, b = (np.asarray(side.taps[found.name], np.float64) for side in sides)
        length = min(len(a), len(b))
        scale = max(rms(a[:length]), rms(b[:length])) or 1.0
        distances[f"at the first {length} positions it"] = rms(a[:length] - b[:length]) / scale
    for what, distance in distances.items():
        if distance > sum(base.sides):
            told = _beyond(f"{what} differs by {distance:.1e}", sum(base.sides))
            nature = "function" if distance > 2 * base.widest else "unproven"
            return replace(found, elements=size, fault=told, nature=nature)
    return replace(found, elements=size)


def _reading(side: Recording | Excerpt, value: np.ndarray, own: np.ndarray | None) -> Reading:
    return Reading(side.label, side.dtype, value, own)
