"""Two groups of runs: is the gap between their validation losses noise?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palm.errors import RunError
from palm.training.noise import Gap, paired_gap, unpaired_gap
from palm.training.runs import ListedRun, differing

# Losses on other text, or of other tokens, are no losses of the same task.
_OF_THE_TEXT = ("data", "tokenizer", "validation")


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


def compare_groups(a: Sequence[ListedRun], b: Sequence[ListedRun], *, seed: int = 0) -> Groups:
    """The last validation losses of runs `a` against those of `b`.

    Where each group has the same seeds, each once, runs of one seed are pairs. `seed` is of the bootstrap.
    Raises `RunError` for a group of fewer than two runs, a run in both groups or without a finite validation
    loss, and runs of other data, another tokenizer or another share of validation.
    """
    a, b = (sorted(runs, key=lambda run: (run.settings["seed"], run.name)) for runs in (a, b))
    _check(a, b)
    losses, others = (np.array([run.last("val_loss") for run in runs], np.float64) for runs in (a, b))
    seeds = [run.settings["seed"] for run in a]
    is_paired = seeds == [run.settings["seed"] for run in b] and len(set(seeds)) == len(seeds)
    gap = paired_gap(losses - others, seed=seed) if is_paired else unpaired_gap(losses, others, seed=seed)
    return Groups(a, b, gap, [name for name in differing([*a, *b]) if name != "seed"])


def _check(a: Sequence[ListedRun], b: Sequence[ListedRun]) -> None:
    for runs in (a, b):
        if len(runs) < 2:
            raise RunError(
                f"a group must have at least two runs, or nothing tells how much chance does; got {len(runs)}"
                f"{''.join(f', {run.name}' for run in runs)}. Train with other seeds as well."
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
