"""Two groups of runs: is the gap between their validation losses noise? Two runs: are they the same one?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palm.errors import RunError
from palm.spec.rounding import loss_resolution
from palm.training.noise import Gap, paired_gap, unpaired_gap
from palm.training.runs import ListedRun, differing

# Losses on other text, or of other tokens, are no losses of the same task.
_OF_THE_TEXT = ("data", "tokenizer", "validation")
# What changes nothing but rounding; and the start, which has other words for the same weights.
_OF_ROUNDING = ("backend", "device", "attention", "precision", "remat", "accumulate", "start")


@dataclass(frozen=True)
class Groups:
    """Two groups of runs in the order of their seeds, the gap of their last validation losses, in nats, and
    the settings in which any two of the runs differ, without the seed."""

    a: list[ListedRun]
    b: list[ListedRun]
    gap: Gap
    differing: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        sides = {"a": self.a, "b": self.b}
        return {
            **{name: [_told(run) for run in runs] for name, runs in sides.items()},
            "gap": self.gap.to_dict(),
            "differing": self.differing,
        }


@dataclass(frozen=True)
class Pair:
    """Two runs of one seed, by the losses of the steps that both have made; in nats.

    `largest` is the largest gap, at step `step`, and `grown` the first step whose gap is above `resolution`,
    which is of that step: losses that are closer may be one number, summed in another order. None: no gap is,
    and `resolution` is the largest of any step.
    """

    a: ListedRun
    b: ListedRun
    losses: int
    largest: float
    step: int
    grown: int | None
    resolution: float
    differing: list[str]

    def told(self) -> str:
        """What follows for a reader."""
        found = (
            f"Of {self.losses:,} losses at the same steps none is further apart than {self.largest:.2g} "
            f"nats (step {self.step:,})."
        )
        if self.grown is None:
            return (
                f"{found} That is rounding: sums tell no losses apart below {self.resolution:.2g}. "
                "The losses are those of one run."
            )
        return (
            f"{found} At step {self.grown:,}, for the first time, a gap is above {self.resolution:.2g}, "
            "which is what sums tell apart. Training makes rounding grow, so one run each cannot say whether "
            "this is more than noise: train both with other seeds."
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **dataclasses.asdict(self),
            "a": _told(self.a),
            "b": _told(self.b),
            "same": self.grown is None,
        }


def compare_pair(a: ListedRun, b: ListedRun) -> Pair:
    """The training and validation losses of two runs at the steps that both have made.

    Raises `RunError` for one run twice, for runs with less than two steps in common, whose losses may be
    equal whatever the updates are, and for runs that differ in more than backend and rounding.
    """
    others = differing([a, b])
    if a.path.resolve() == b.path.resolve():
        raise RunError(f"two runs must be compared; got {a.path} twice. Name another one.")
    if names := [name for name in others if name not in _OF_ROUNDING]:
        raise RunError(
            f"two single runs must be of one seed, text, config and recipe; these differ in "
            f"{', '.join(names)}. Give at least two runs a group, with other seeds, to tell a gap from noise."
        )
    gaps, bounds = {}, {}
    theirs = {entry["step"]: entry for entry in b.entries}
    for entry in a.entries:
        other = theirs.get(entry["step"], {})
        for name in ("loss", "val_loss"):
            if name in entry and name in other:
                key = int(entry["step"]), name
                gaps[key] = abs(entry[name] - other[name])
                size = max(abs(entry[name]), abs(other[name]))
                bounds[key] = max(_resolution(run, size) for run in (a, b))
    if sum(name == "loss" for _, name in gaps) < 2:
        raise RunError(
            f"two runs must have at least two steps in common; got {a.path} and {b.path}. Train them further."
        )
    at = max(gaps, key=lambda key: gaps[key])
    grown = next((key for key in sorted(gaps) if gaps[key] > bounds[key]), None)
    resolution = max(bounds.values()) if grown is None else bounds[grown]
    return Pair(a, b, len(gaps), gaps[at], at[0], grown and grown[0], resolution, others)


def compare_groups(a: Sequence[ListedRun], b: Sequence[ListedRun], *, seed: int = 0) -> Groups:
    """The last validation losses of runs `a` against those of `b`.

    Where both groups have the same seeds, runs of one seed are pairs. `seed` is of the bootstrap.
    Raises `RunError` for a group of fewer than two runs or with two of one seed, a run in both groups or
    without a finite validation loss, and runs of other data, another tokenizer or another share of
    validation.
    """
    a, b = (sorted(runs, key=lambda run: (run.settings["seed"], run.name)) for runs in (a, b))
    _check(a, b)
    losses, others = (np.array([run.last("val_loss") for run in runs], np.float64) for runs in (a, b))
    seeds = [run.settings["seed"] for run in a]
    is_paired = seeds == [run.settings["seed"] for run in b]
    gap = paired_gap(losses - others, seed=seed) if is_paired else unpaired_gap(losses, others, seed=seed)
    gap = dataclasses.replace(gap, resolution=max(map(_resolution, (*a, *b), [*losses, *others])))
    return Groups(a, b, gap, [name for name in differing([*a, *b]) if name != "seed"])


def _check(a: Sequence[ListedRun], b: Sequence[ListedRun]) -> None:
    for runs in (a, b):
        if len(runs) < 2:
            raise RunError(
                f"a group must have at least two runs, or nothing tells how much chance does; got {len(runs)}"
                f"{''.join(f', {run.name}' for run in runs)}. Train with other seeds as well."
            )
        seeds = [run.settings["seed"] for run in runs]
        if again := [seed for seed in seeds if seeds.count(seed) > 1]:
            those = ", ".join(run.name for run in runs if run.settings["seed"] == again[0])
            raise RunError(
                "the runs of a group must be of different seeds, or one counts twice; got "
                f"seed={again[0]} of {those}. Leave one out."
            )
    twice = {run.path.resolve() for run in a} & {run.path.resolve() for run in b}
    if twice:
        raise RunError(f"a run must be in one group; got {min(twice)} in both. Leave it out of one.")
    for run in (*a, *b):
        loss = run.last("val_loss")
        if loss is None or not math.isfinite(loss):
            raise RunError(
                f"a run must have a finite validation loss to be compared; got {loss} of {run.path}. "
                "Train with validation, or leave the run out."
            )
    if names := [name for name in differing([*a, *b]) if name in _OF_THE_TEXT]:
        raise RunError(
            "runs must have validation losses of the same text to be compared; these differ in "
            f"{', '.join(names)}. Evaluate their checkpoints on one text: palm eval A B --text FILE."
        )


def _resolution(run: ListedRun, loss: float) -> float:
    """Below which two validation losses of a run are one; it forms them a micro-batch at a time."""
    told = run.settings
    terms = told["batch"] // told["accumulate"] * told["length"]
    wide = "float64" if told["precision"] == "float64" else "float32"
    return float(loss_resolution(wide, loss, told["num_tokens"], terms))


def _told(run: ListedRun) -> dict[str, Any]:
    settings = run.settings
    return {
        "run": run.name,
        "path": str(run.path),
        "seed": settings["seed"],
        "step": run.step,
        "steps": run.steps,
        "val_loss": run.last("val_loss"),
    }
