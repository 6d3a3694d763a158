"""Two trainings from the same weights: do the frameworks drift apart faster than one rounding error would?

Training amplifies rounding without end, so no fixed tolerance fits. What fits is the *butterfly effect*: the
torch wing once more, from weights of which each element is moved by one unit in the last place. With x_k, y_k
and c_k the weights of torch, of JAX and of that control after k steps,

    distance_k = ‖x_k − y_k‖ / ‖x_k‖        control_k = ‖x_k − c_k‖ / ‖x_k‖

and the ratio of the two says how much more than such a unit it would take to drive torch as far away from
itself as JAX is. It is the geometric mean over an octave of steps (8–15, 16–31, …), and the largest octave
counts: in a long run both distances end at the size of the weights, and what was different shows early. But
not before step 8, unless there are no more: in bfloat16, moving a weight by one unit of its float32 master
hardly ever moves the rounded copy that computes, so the control needs a few steps to depart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from palm.fields import plain
from palm.parity.drift.trajectory import Trajectory
from palm.spec.parameters import dtype_name
from palm.spec.rounding import UNIT_ROUNDOFF

RUNS = ("torch", "jax", "control")
# Above all ratios of right sides, so measured: `tiny`, batch 2, length 64, ten seeds of 20 steps each,
# recipe "adamw": float64 0.11 to 0.21, float32 0.13 to 0.15, bfloat16 1.4 to 1.8; 200 steps of float32 up to
# 0.57; two controls of one another 0.9 to 1.2. The learning rate 1 % off, in float32: 1100; β₂ 0.98 for 0.99:
# 700; z-loss 10 % off: 9. In bfloat16, which rounds away what is smaller, they are 3.2, 2.6 and 1.6.
# What no bar can tell apart is chance in the recipe "paper": Adafactor starts with lr · the gradient's sign,
# so a weight whose gradient is nearly 0 may be sent either way. In `tiny` that was so for 2 controls of 24,
# up to 270 times further away. A fault is there for every seed.
BUTTERFLY_BAR = 3.0
# In bfloat16 the steps before gave ratios up to 3.0: it takes 8 steps, better 20, to judge it.
FIRST_JUDGED = 8


class Octave(NamedTuple):
    """Steps `first` … `last`, and the geometric mean of the distance over the control's there."""

    first: int
    last: int
    ratio: float


@dataclass(frozen=True)
class Butterfly:
    """What training both sides found. Arrays have one value for each k = 0 … N updates made.

    `losses` and `grad_norms`: of torch, jax and control, of batch k + 1 before it is learnt from.
    `distance`, `control_distance`: of the weights, from torch's. `not_finite`: by run, the first k at which
    loss or gradient is not finite, if there is one. `followed` of `parameters` weights were measured.
    """

    losses: Mapping[str, np.ndarray] = field(repr=False)
    grad_norms: Mapping[str, np.ndarray] = field(repr=False)
    distance: np.ndarray = field(repr=False)
    control_distance: np.ndarray = field(repr=False)
    octaves: tuple[Octave, ...]
    not_finite: Mapping[str, int]
    followed: int
    parameters: int

    @property
    def steps(self) -> int:
        """N: the updates that were made."""
        return len(self.distance) - 1

    @property
    def gap(self) -> np.ndarray:
        """|torch's loss − jax's| in nats."""
        return _gap(self.losses["torch"], self.losses["jax"])

    @property
    def control_gap(self) -> np.ndarray:
        """|torch's loss − the control's| in nats."""
        return _gap(self.losses["torch"], self.losses["control"])

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
    def agree(self) -> bool:
        """Whether all runs stayed finite and the frameworks no further apart than the bar allows."""
        return not self.not_finite and self.ratio <= BUTTERFLY_BAR

    @property
    def verdict(self) -> str:
        """The answer in a sentence."""
        measured = (
            f"the distance between torch and jax is at most {self.ratio:.2g} times the distance between "
            f"torch and its control (initial weights moved by one unit in the last place; bar "
            f"{BUTTERFLY_BAR:g}); largest gap of the losses {self.largest_gap:.1e} nats"
        )
        over = f"over {self.steps} training step{'s' * (self.steps != 1)}"
        if self.not_finite:
            where = ", ".join(f"on {run} from step {k} on" for run, k in self.not_finite.items())
            until = f"; before that, {measured}" if self.octaves else ""
            return f"{over} loss or gradient is not finite {where}{until}."
        first = next((octave.first for octave in self.octaves if octave.ratio > BUTTERFLY_BAR), None)
        drift = "no faster than torch and its control"
        if first is not None:
            drift = f"by more than rounding explains, from step {first} on"
            measured += "; a fault shows with every seed"
        return f"{over} torch and jax drift apart {drift}: {measured}."

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


def butterfly(torch: Trajectory, jax: Trajectory, control: Trajectory) -> Butterfly:
    """Compare three trainings of the same batches; the control is torch's from weights moved by an ulp."""
    runs = dict(zip(RUNS, (torch, jax, control), strict=True))
    distance, control_distance = _distances(torch, jax), _distances(torch, control)
    not_finite = {run: k for run, way in runs.items() if (k := way.first_not_finite) is not None}
    finite = min(not_finite.values(), default=len(distance))
    followed = torch.weights.shape[1]
    # Below that no distance is told from another: one weight that is followed, moved by one unit.
    least = UNIT_ROUNDOFF[dtype_name(torch.weights.dtype)] / math.sqrt(followed)
    return Butterfly(
        losses={run: way.losses for run, way in runs.items()},
        grad_norms={run: way.grad_norms for run, way in runs.items()},
        distance=distance,
        control_distance=control_distance,
        octaves=tuple(_octaves(distance[:finite], control_distance[:finite], least)),
        not_finite=not_finite,
        followed=followed,
        parameters=torch.parameters,
    )


def spread_steps(last: int) -> list[int]:
    """A few steps to show: 0, 1, 2, 5, 10, 20, 50, … and the last one."""
    found = [s * 10**power for power in range(len(str(last))) for s in (1, 2, 5)]
    return sorted({0, *(k for k in found if k < last), last})


def _gap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # infinity minus itself is no number, as it should be
        return np.abs(a - b)


def _distances(a: Trajectory, b: Trajectory) -> np.ndarray:
    """‖a_k − b_k‖ / ‖a_k‖ for each k, row by row: all may be more than memory holds. Shape (N + 1,)."""
    found = []
    for row_a, row_b in zip(a.weights, b.weights, strict=True):
        wide = row_a.astype(np.float64)
        found.append(np.linalg.norm(wide - row_b) / (np.linalg.norm(wide) or 1.0))
    return np.array(found)


def _octaves(distance: np.ndarray, control: np.ndarray, least: float) -> list[Octave]:
    logs = np.log(np.maximum(distance, least)) - np.log(np.maximum(control, least))
    last = len(logs) - 1
    first = min(FIRST_JUDGED, 1 << max(0, last.bit_length() - 1))
    found = []
    while first < len(logs):
        ratios = logs[first : 2 * first]
        found.append(Octave(first, first + len(ratios) - 1, float(np.exp(ratios.mean()))))
        first *= 2
    return found


def _listed(values: np.ndarray) -> list[Any]:
    return [plain(value) for value in values.tolist()]
