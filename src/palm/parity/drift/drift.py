"""Two trainings from the same weights: do they drift apart faster than rounding errors would drive them?

Training amplifies rounding without end, so no fixed tolerance fits. What fits is the *butterfly effect*: a
*control*, which is one of the sides once more, from weights of which each element is moved by one unit in the
last place. `palm.parity.drift.distance` says how the distance of the sides and that of the control are
measured. Their ratio is the geometric mean over an octave of steps (1, 2–3, 4–7, 8–15, …), and the largest
octave counts: in a long run both distances end at the size of the weights, and what was different shows
early; and a wrong first step fades later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from palm.fields import plain
from palm.parity.drift.check import check_comparable
from palm.parity.drift.distance import distances
from palm.parity.drift.trajectory import Trajectory
from palm.parity.finding import Outcome

RUNS = ("torch", "jax", "control")
# Above all ratios of right sides, so measured: a model of 26,000 weights, batch 2, length 24, ten seeds of 20
# steps each, recipe "adamw": float64 0.08 to 0.38, float32 0.08 to 0.25, bfloat16 0.53 to 0.73; recipe
# "paper": 0.26 to 0.34, 0.26 to 0.30 and 1.1 to 1.8; two seeds of 150 steps of bfloat16, 1.2 and 2.2. `tiny`,
# batch 2, length 64, 20 steps: float32 0.10 to 0.13 (two seeds), bfloat16 0.5 to 0.7 (three). The learning
# rate 1 % off, in float32: 950 (50 in the first step); β₂ 0.98 for 0.99: 580; z-loss 10 % off: 11. In
# bfloat16, which rounds away what is smaller, the first two are 1.3 and 1.0: they are not found. A recipe
# "paper" of `tiny` in float32: 0.28 to 0.38 for 11 seeds of 12, and one of which a weight went the other way.
# A small network, torch's AdamW against optax, 30 steps, ten seeds: float64 0.28, float32 0.36 and bfloat16
# 0.96 at most. Its learning rate one step of warm-up ahead: 3e4 in float32 and 9 in bfloat16, in step 1.
BUTTERFLY_BAR = 3.0


class Octave(NamedTuple):
    """Steps `first` … `last`, and the geometric mean of the distance over the control's there."""

    first: int
    last: int
    ratio: float


@dataclass(frozen=True)
class Drift:
    """What training both sides found. Arrays have one value for each k = 0 … N updates made.

    `labels`: what the sides are called. `losses` and `grad_norms`: by label and of the control, of batch
    k + 1 before it is learnt from. `distance`: of the weights; `control_distance`: what rounding explains
    of it. `not_finite`: by run, the first k at which loss, gradient or weights are not finite, if there is
    one. `chance`: the step at which a few weights took opposite steps, their gradients being near 0; none
    after it is judged. `followed` of `parameters` weights were measured.
    """

    labels: tuple[str, str]
    losses: Mapping[str, np.ndarray] = field(repr=False)
    grad_norms: Mapping[str, np.ndarray] = field(repr=False)
    distance: np.ndarray = field(repr=False)
    control_distance: np.ndarray = field(repr=False)
    octaves: tuple[Octave, ...]
    not_finite: Mapping[str, int]
    chance: int | None
    followed: int
    parameters: int

    @property
    def steps(self) -> int:
        """N: the updates that were made."""
        return len(self.distance) - 1

    @property
    def gap(self) -> np.ndarray:
        """The distance between the losses of both sides."""
        return _gap(*(self.losses[label] for label in self.labels))

    @property
    def control_gap(self) -> np.ndarray:
        """The distance between the losses of the first side and of the control."""
        return _gap(self.losses[self.labels[0]], self.losses["control"])

    @property
    def largest_gap(self) -> float:
        """The largest gap of the losses where both are finite; nan if they nowhere are."""
        gaps = self.gap[np.isfinite(self.gap)]
        return float(gaps.max()) if gaps.size else math.nan

    @property
    def ratio(self) -> float:
        """Of the octave where it is largest; nan if the runs diverged before the first step."""
        return max((octave.ratio for octave in self.octaves), default=math.nan)

    @property
    def outcome(self) -> Outcome:
        """Agree: all runs stayed finite and the sides no further apart than the bar allows. Cannot tell: so
        far as can be judged, which is only until the step `chance`."""
        if self.not_finite or not self.ratio <= BUTTERFLY_BAR:
            return "differ"
        return "agree" if self.chance is None else "cannot tell"

    @property
    def agree(self) -> bool:
        """Whether the outcome is "agree"."""
        return self.outcome == "agree"

    @property
    def verdict(self) -> str:
        """The answer in a sentence."""
        a, b = self.labels
        measured = (
            f"the distance between {a} and {b} is at most {self.ratio:.2g} times the distance between "
            f"{a} and its control (initial weights moved by one unit in the last place; bar "
            f"{BUTTERFLY_BAR:g}); largest gap of the losses {self.largest_gap:.1e} nats"
        )
        over = f"over {self.steps} training step{'s' * (self.steps != 1)}"
        if self.not_finite:
            where = ", ".join(f"on {run} from step {k} on" for run, k in self.not_finite.items())
            until = f"; before that, {measured}" if self.octaves else ""
            return f"{over} loss or gradient is not finite {where}{until}."
        if self.outcome == "cannot tell":
            return (
                f"{over} it cannot be told whether {a} and {b} drift apart: in step {self.chance} a few "
                "weights went opposite ways, as rounding can send those whose gradient is nearly 0, and the "
                f"others follow them. Until then, {measured}. Repeat with another seed."
            )
        first = next((octave.first for octave in self.octaves if octave.ratio > BUTTERFLY_BAR), None)
        drift = f"no faster than {a} and its control"
        if first is not None:
            drift = f"by more than rounding explains, from step {first} on"
            measured += "; a fault shows with every seed"
        return f"{over} {a} and {b} drift apart {drift}: {measured}."

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; what is not finite is given as text ("inf", "nan").

        `agree`, `verdict`, `bar`, `ratio`: the answer. `octaves`: objects of `first`, `last`, `ratio`.
        `steps`: N. `followed`, `parameters`: weights measured, of how many. `not_finite`: the first such k
        by run. `largest_gap` and `gap`, `control_gap`: of the losses, in nats. `distance`,
        `control_distance`: of the weights. `losses`, `grad_norms`: by run. Lists hold k = 0 … N.
        """
        series = ("gap", "control_gap", "distance", "control_distance")
        return {
            "agree": self.agree,
            "verdict": self.verdict,
            "bar": BUTTERFLY_BAR,
            "ratio": plain(self.ratio),
            "octaves": [{**octave._asdict(), "ratio": plain(octave.ratio)} for octave in self.octaves],
            "steps": self.steps,
            "followed": self.followed,
            "parameters": self.parameters,
            "not_finite": dict(self.not_finite),
            "largest_gap": plain(self.largest_gap),
            **{name: _listed(getattr(self, name)) for name in series},
            "losses": {run: _listed(values) for run, values in self.losses.items()},
            "grad_norms": {run: _listed(values) for run, values in self.grad_norms.items()},
        }


def drift(a: Trajectory, b: Trajectory) -> Drift:
    """Compare two trainings on the same batches. At least one of them has a control.

    Raises `WeightsError` if names or shapes of the weights differ, if the sides do not start from the same
    weights, or if they made another number of steps or were recorded with another seed.
    """
    check_comparable(a, b)
    return _compared(a, b, exact_scalars=False)


def butterfly(torch: Trajectory, jax: Trajectory, control: Trajectory) -> Drift:
    """Compare palm's two wings; the control is torch's from weights moved by an ulp."""
    first = replace(torch, label=RUNS[0], control=control)
    return _compared(first, replace(jax, label=RUNS[1]), exact_scalars=True)


def _compared(a: Trajectory, b: Trajectory, *, exact_scalars: bool) -> Drift:
    control = a.control or b.control
    assert control is not None
    runs = {a.label: a, b.label: b, "control": control}
    found = distances(a, b, BUTTERFLY_BAR, exact_scalars=exact_scalars)
    not_finite = {run: k for run, way in runs.items() if (k := way.first_not_finite) is not None}
    last = min(not_finite.values(), default=len(found.judged))
    followed = a.weights.shape[1]
    # Below that no distance is told from another: one weight that is followed, moved by one unit.
    least = max(a.unit, b.unit) / math.sqrt(followed)
    norms = {run: way.grad_norms for run, way in runs.items() if way.grad_norms is not None}
    return Drift(
        labels=(a.label, b.label),
        losses={run: way.losses for run, way in runs.items()},
        grad_norms=norms,
        distance=found.distance,
        control_distance=found.control,
        octaves=tuple(_octaves(found.judged[:last], found.control[:last], least)),
        not_finite=not_finite,
        chance=found.chance if found.chance is not None and found.chance < last else None,
        followed=followed,
        parameters=a.parameters,
    )


def spread_steps(last: int) -> list[int]:
    """A few steps to show: 0, 1, 2, 5, 10, 20, 50, … and the last one."""
    found = [s * 10**power for power in range(len(str(last))) for s in (1, 2, 5)]
    return sorted({0, *(k for k in found if k < last), last})


def _gap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # infinity minus itself is no number, as it should be
        return np.abs(a - b)


def _octaves(distance: np.ndarray, control: np.ndarray, least: float) -> list[Octave]:
    logs = np.log(np.maximum(distance, least)) - np.log(np.maximum(control, least))
    found, first = [], 1
    while first < len(logs):
        ratios = logs[first : 2 * first]
        found.append(Octave(first, first + len(ratios) - 1, float(np.exp(ratios.mean()))))
        first *= 2
    return found


def _listed(values: np.ndarray) -> list[Any]:
    return [plain(value) for value in values.tolist()]
