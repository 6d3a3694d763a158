"""Short runs in either wing, and whether a disk that fails or a process that dies costs one anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import small
from disks import changes, fails, killed

import palm
from palm import jax_impl, torch_impl
from palm.checkpoint.progress import load_progress
from palm.recipes import Outcome
from palm.training.run_folder import Run

WINGS = {"torch": torch_impl, "jax": jax_impl}
TEXT = bytes(range(13)) * 40 + bytes(reversed(range(13))) * 40
STEPS = 4
CONFIG = small(positions="rotary", norm="layernorm", share_kv=False)
RECIPE = palm.Recipe(steps=STEPS, batch=4, length=8, warmup=2, validation=0.2)
REWINDING = palm.Recipe(
    steps=STEPS, batch=4, length=8, warmup=2, validation=0.2, non_finite="rewind", rewind=1, skip=1
)
BUSY = palm.Cadence(checkpoint_every=2, keep=1, sample_every=2, sample_tokens=2)
# The same for a run of thirty steps.
LONG = dataclasses.replace(RECIPE, steps=30)
LONGER = palm.Cadence(checkpoint_every=10, keep=1, validate_every=15, sample_every=15, sample_tokens=2)


def train(
    out: Path, wing: str = "torch", data: Any = TEXT, recipe: palm.Recipe = RECIPE, **options: Any
) -> palm.Trained[Any]:
    return palm.train(CONFIG, recipe, data, backend=wing, out=out, **options)


def end_of(run: Path) -> tuple[Any, ...]:
    """Everything that makes the last checkpoint, and the log, without its times."""
    _, arrays, progress = load_progress(Run(run).checkpoint())
    numbers = {name: array.tobytes() for name, array in {**arrays, **progress.moments}.items()}
    losses = [(entry["step"], entry["loss"], entry["grad_norm"]) for entry in Run(run).entries()]
    return numbers, progress.fields["row"], losses


def third_batch(wing: str, folder: Path) -> bytes:
    """What a run learns from in its third step."""
    seen: list[bytes] = []
    trainer = WINGS[wing].Trainer
    original = trainer.step

    def step(self: Any, windows: np.ndarray, rates: Any) -> Any:
        seen.append(windows[:].tobytes())
        return original(self, windows, rates)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "step", step)
        train(folder / "to see its batches", wing)
    return seen[2]


@contextmanager
def bad_batch(wing: str, batch: bytes | None) -> Iterator[None]:
    """That batch has no finite loss, whenever it is met."""
    trainer = WINGS[wing].Trainer
    original = trainer.step

    def step(self: Any, windows: np.ndarray, rates: Any) -> Any:
        if windows[:].tobytes() == batch:
            return Outcome(float("nan"), float("nan"), ["norm"])
        return original(self, windows, rates)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "step", step)
        yield


def busy_run(
    run: Path, wing: str, text: Path, recipe: palm.Recipe, bad: bytes | None, *, behind: bool = False
) -> None:
    """A run that saves, samples, validates and prunes; new, or from where it was ended."""
    cadence = dataclasses.replace(BUSY if recipe.steps == STEPS else LONGER, save_behind=behind)
    with bad_batch(wing, bad):
        if Run(run).is_run:
            assert Run(run).checkpoints()
            palm.resume(run, cadence=cadence)
        else:
            train(run, wing, text, recipe, cadence=cadence)


class Trial:
    """A busy run, and what it leads to if nothing happens."""

    def __init__(
        self,
        folder: Path,
        wing: str,
        recipe: palm.Recipe = RECIPE,
        bad: bytes | None = None,
        *,
        behind: bool = False,
    ) -> None:
        self.folder, self.behind = folder, behind
        self.text = folder / "text"
        self.text.write_bytes(TEXT)
        self.given = wing, self.text, recipe, bad
        self.goes_on(folder / "first")  # the first plot of a process makes folders of matplotlib's own
        self.calls = changes(lambda: self.goes_on(folder / "whole"))
        self.end = end_of(folder / "whole")

    def goes_on(self, run: Path) -> None:
        busy_run(run, *self.given, behind=self.behind)

    def fails(self, call: int, error: int) -> bool:
        """Whether the run ends with an error if that change of the disk fails; nothing may be lost then."""
        run = self.folder / f"run-{call}-{error}"
        raised = fails(lambda: self.goes_on(run), call, error)
        assert raised is None or isinstance(raised, palm.PalmError), raised
        self.ends_as_if_nothing_had_happened(run)
        return raised is not None

    def dies(self, call: int) -> bool:
        """Whether the run is killed if that change of the disk is its last one; nothing may be lost then."""
        run = self.folder / f"killed-{call}"
        is_dead = killed(lambda: self.goes_on(run), call)
        self.ends_as_if_nothing_had_happened(run)
        return is_dead

    def ends_as_if_nothing_had_happened(self, run: Path) -> None:
        self.goes_on(run)
        assert end_of(run) == self.end, run
        with Run(run).locked():  # the next start clears away what could not be deleted
            left = [path.name for path in run.iterdir() if path.name.startswith(".")]
            assert left == [".lock"], run


def spread(calls: list[str], count: int) -> list[int]:
    """So many of the numbers of calls, evenly."""
    return [int(at) for at in np.linspace(1, len(calls), count)]
