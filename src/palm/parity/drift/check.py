"""Whether two trajectories can be compared."""

from __future__ import annotations

import numpy as np

from palm.errors import WeightsError
from palm.parity.drift.trajectory import Trajectory


def check_comparable(a: Trajectory, b: Trajectory) -> None:
    """Raise `WeightsError` unless two trajectories are of the same weights, steps and seed."""
    _check_recorded(a, b)
    _check_named(a, b)
    x, y = (side.weights[0].astype(np.float64) for side in (a, b))
    away = float(np.linalg.norm(x - y) / (np.linalg.norm(x) or 1.0))
    if not away <= 2 * max(a.unit, b.unit):
        raise WeightsError(
            f"both sides must start from the same weights; got a distance of {away:.1e}, relative to their "
            f"norm, between {a.label} and {b.label}. Copy the weights of one into the other, and check in "
            "weights= that square matrices are transposed too."
        )


def _check_recorded(a: Trajectory, b: Trajectory) -> None:
    if a.control is None and b.control is None:
        raise WeightsError("a or b must have a control; got none of both. Record it with Trajectory.record.")
    if not a.label or a.label == b.label or "control" in (a.label, b.label):
        raise WeightsError(
            f'labels must be two names other than "control"; got {a.label!r} and {b.label!r}. Pass label= to '
            "Trajectory.record."
        )
    if (len(a.weights), a.seed) != (len(b.weights), b.seed):
        raise WeightsError(
            f"both sides must make as many steps, with one seed; got {len(a.weights) - 1} steps and seed "
            f"{a.seed} of {a.label}, {len(b.weights) - 1} and {b.seed} of {b.label}. Record both on the "
            "same batches."
        )


def _check_named(a: Trajectory, b: Trajectory) -> None:
    if set(a.shapes) != set(b.shapes):
        only_a, only_b = (sorted(set(p.shapes) - set(q.shapes)) for p, q in ((a, b), (b, a)))
        raise WeightsError(
            f"both sides must have weights of the same names; got only of {a.label}: {_few(only_a)}; only of "
            f"{b.label}: {_few(only_b)}. Pass weights=, a function that gives them under common names."
        )
    for name, shape in a.shapes.items():
        if shape != b.shapes[name]:
            raise WeightsError(
                f'"{name}" must have one shape on both sides; got {list(shape)} of {a.label} and '
                f"{list(b.shapes[name])} of {b.label}. Transpose or reshape it in weights=."
            )


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "none"
