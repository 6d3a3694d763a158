"""How far apart two trainings are after each step, and how far rounding would take them.

x_k, y_k and c_k are the weights of the two sides and of a control after k updates.

    distance_k = ‖x_k − y_k‖ / ‖x_k‖
    control_k = sqrt(r_k² + s_k² + t_k²) / ‖x_k‖
    r_k² = Σ_j ‖(x_j − x_(j−1)) − (c_j − c_(j−1))‖², j = 1 … k
    s_k = ‖ulp(x_k)‖ · sqrt(max(k, 1) / 12)
    t_k² = (8 · u)² · Σ_j ‖x_j − x_(j−1)‖² + (500 · w)² · ‖x_k − x_0‖²

**r_k.** The control starts from weights that are moved by one unit in the last place of the dtype in which
a step computes: everything that a step computes with is then changed as much as its rounding changes it,
from the first step on. The move itself says nothing, and in bfloat16 is larger than many updates: it is the
*updates* that are compared. The move stays, and sends update after update the same way, while rounding
errors are new in every step. So the changes of the updates add in quadrature, as independent errors do.

**s_k** is the rounding of each weight when it is stored, once a step: errors that are uniform in ± ulp/2
have the root mean square ulp/√12.

**t_k** is for what the move does not show. No gradient is known better than to several unit roundoffs u of
the computing dtype, also one that does not depend on the weights (all are 0, say). And a loop may form the
scalars of its optimizer in the dtype of the weights, of unit roundoff w, or in float32 if that is finer: then
Adam's 1 − β₂^k has the relative error w / (1 − β₂) in the first step, and its root half of that, which is
500 · w for β₂ = 0.999, in all updates alike. palm's own trainers form them in float64: for them it is 0.

**Chance signs.** The first steps of Adam and of Adafactor are lr · the *sign* of the gradient. One near 0
may be sent either way by rounding: that weight is then 2·lr away, which is far above any rounding, and soon
all others follow it. So if a distance is over the bar for the first time, and only because of so few
weights, all of which the sides have just moved in opposite directions, then this step is judged without
them, and none after it is judged. Only weights that are followed are seen to do so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from palm.parity.drift.trajectory import Trajectory
from palm.parity.drift.ulp import spacing
from palm.spec.rounding import unit_roundoff

# One in so many weights, but at least one, may be sent the other way by chance in a step.
CHANCE = 4096
_GRADIENT_ROUNDINGS, _SCALAR_ROUNDINGS = 8, 500


class Distances(NamedTuple):
    """For each k = 0 … N, relative to ‖x_k‖. `judged` is `distance` up to the last step that is judged.

    `chance`: the step at which a few weights took opposite steps, if there is one: the last of `judged`.
    """

    distance: np.ndarray
    control: np.ndarray
    judged: np.ndarray
    chance: int | None


def distances(a: Trajectory, b: Trajectory, bar: float, *, exact_scalars: bool = False) -> Distances:
    """Of two trajectories, the nearer control counting. Row by row: all may not fit into memory."""
    controls = [_Control(side) for side in _controls(a, b)]
    unit = max(a.unit, b.unit)
    gradient = _GRADIENT_ROUNDINGS * max(a.computed, b.computed)
    scalars = 0.0 if exact_scalars else _SCALAR_ROUNDINGS * min(unit, unit_roundoff("float32"))
    updates = 0.0
    x_0, x_before, y_before = _wide(a, 0), _wide(a, 0), _wide(b, 0)
    distance, control, judged, chance = [], [], [], None
    for k in range(len(a.weights)):
        x, y = _wide(a, k), _wide(b, k)
        size = np.linalg.norm(x) or 1.0
        stored = np.linalg.norm(spacing(x, unit)) * np.sqrt(max(k, 1) / 12)
        updates = np.hypot(updates, np.linalg.norm(x - x_before))
        shared = np.hypot(gradient * updates, scalars * np.linalg.norm(x - x_0))
        answer = min(one.answer(k) for one in controls)
        explained, away = np.hypot(answer, np.hypot(stored, shared)), np.linalg.norm(x - y)
        if chance is None:
            rest = _without_chance(x - y, (x - x_before) * (y - y_before) < 0)
            if k and rest <= bar * explained < away:
                chance = k
            judged.append((away if chance is None else rest) / size)
        distance.append(away / size)
        control.append(explained / size)
        x_before, y_before = x, y
    return Distances(np.array(distance), np.array(control), np.array(judged), chance)


def _without_chance(difference: np.ndarray, opposite: np.ndarray) -> float:
    """The norm without the few weights that are furthest away of those that took opposite steps."""
    squares = np.square(difference)
    few = np.sort(squares[opposite])[::-1][: 1 + len(squares) // CHANCE]
    return float(np.sqrt(max(0.0, squares.sum() - few.sum())))


def _controls(a: Trajectory, b: Trajectory) -> Sequence[Trajectory]:
    """The sides that have a control of the coarsest precision: one of a finer says nothing of a coarser."""
    sides = [side for side in (a, b) if side.control is not None]
    coarsest = max(side.computed for side in sides)
    return [side for side in sides if side.computed == coarsest]


class _Control:
    """r_k of one side's control, k after k."""

    def __init__(self, side: Trajectory) -> None:
        assert side.control is not None
        self.side, self.control = side, side.control
        self.before, self.squares = _wide(side, 0) - _wide(side.control, 0), 0.0

    def answer(self, k: int) -> float:
        apart = _wide(self.side, k) - _wide(self.control, k)
        self.squares += float(np.sum(np.square(apart - self.before)))
        self.before = apart
        return float(np.sqrt(self.squares))


def _wide(side: Trajectory, k: int) -> np.ndarray:
    return side.weights[k].astype(np.float64)
