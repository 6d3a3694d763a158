"""The losses of several runs as lines to draw; runs that differ in nothing but their seed are one line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from palm.errors import RunError
from palm.training.runs import ListedRun

Axis = Literal["step", "tokens"]
# More points than these are not seen, and make files that a browser is slow to show.
MOST_POINTS = 2000
# A loss that is larger is drawn as this: sums of some must be numbers.
MOST = 1e100


@dataclass(frozen=True)
class Points:
    """Losses in nats at places x. Of several runs the mean, the lowest and the highest. Shapes (n,)."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Curve:
    """A line: what it is called, its runs, the running mean of their losses, and their validation losses."""

    label: str
    runs: list[ListedRun]
    training: Points
    validation: Points


def curves(runs: Sequence[ListedRun], axis: Axis) -> list[Curve]:
    """A line for each group of runs that differ in nothing but the seed, over steps or tokens.

    A line of several runs ends where the shortest does. Raises `RunError` if no run has a loss.
    """
    groups: dict[str, list[ListedRun]] = {}
    for run in runs:
        settings = {name: value for name, value in run.settings.items() if name != "seed"}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    found = [
        Curve(_label(group), group, _points(group, axis, "loss"), _points(group, axis, "val_loss"))
        for group in groups.values()
    ]
    if not any(len(curve.training.x) for curve in found):
        raise RunError(
            f"runs must have losses by {axis} to be drawn; got {len(runs)} runs without any. Train first."
        )
    return found


def covered(found: Sequence[Curve]) -> list[int]:
    """For each line how many later ones would hide it: they coincide, as far as is seen, at most places."""
    drawn = [curve.training for curve in found]
    ends = [
        end for points in drawn for end in (points.mean.min(initial=np.inf), points.mean.max(initial=-np.inf))
    ]
    seen = (max(ends) - min(ends)) / 200 if ends else 0.0
    return [
        sum(_coincide(points, later, seen) for later in drawn[at + 1 :]) for at, points in enumerate(drawn)
    ]


def _coincide(one: Points, other: Points, seen: float) -> bool:
    _, own, its = np.intersect1d(one.x, other.x, return_indices=True)
    near = np.abs(one.mean[own] - other.mean[its]) <= seen
    return bool(len(near) and near.mean() > 0.5)


def _label(group: Sequence[ListedRun]) -> str:
    if len(group) == 1:
        return group[0].name
    seeds = len({run.settings["seed"] for run in group})
    first, last = min(run.name for run in group), max(run.name for run in group)
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    common = "".join(character for character, _ in alike).rstrip("-_/. ")
    told = f"{seeds} seeds" if seeds == len(group) else f"{len(group)} runs"
    return f"{common or group[0].name + ' …'} ({told})"


def _points(group: Sequence[ListedRun], axis: Axis, name: str) -> Points:
    each = [_series(run, axis, name) for run in group]
    shared = sorted(set.intersection(*(set(series) for series in each)))
    if len(shared) > MOST_POINTS:
        shared = [shared[int(at)] for at in np.linspace(0, len(shared) - 1, MOST_POINTS)]
    losses = np.array([[series[x] for x in shared] for series in each], np.float64)
    return Points(np.array(shared, np.float64), losses.mean(0), losses.min(0), losses.max(0))


def _series(run: ListedRun, axis: Axis, name: str) -> dict[float, float]:
    """The losses of a run by x: those of training as running means, those of validation as they are."""
    entries = [entry for entry in run.entries if name in entry and axis in entry]
    losses = np.clip(np.array([entry[name] for entry in entries], np.float64), -MOST, MOST)
    drawn = running_mean(losses) if name == "loss" else losses
    return {entry[axis]: float(loss) for entry, loss in zip(entries, drawn, strict=True)}


def running_mean(losses: np.ndarray) -> np.ndarray:
    """At each place, the mean of the last twentieth of all losses, or of those that there are. Shape (n,)."""
    count = len(losses)
    span = max(1, count // 20)
    # Sums of blocks from both ends: unlike differences of sums, they forget a spike that is past.
    blocks = np.zeros((-(-count // span) + 1, span))
    blocks.ravel()[span : span + count] = losses
    from_start = np.cumsum(blocks, 1)
    after = np.cumsum(blocks[:, ::-1], 1)[:, ::-1]
    after = np.concatenate([after[:, 1:], np.zeros((len(blocks), 1))], 1)
    sums = (from_start[1:] + after[:-1]).ravel()[:count]
    return np.asarray(sums / np.minimum(np.arange(1, count + 1), span))
