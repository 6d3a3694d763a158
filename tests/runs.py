"""Short runs in either wing, and whether a disk that fails or a process that dies costs one anything."""

from __future__ import annotations

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


def train(
    out: Path, wing: str = "torch", data: Any = TEXT, recipe: palm.Recipe = RECIPE, **options: Any
) -> palm.Trained[Any]:
    return palm.train(CONFIG, recipe, data, backend=wing, out=out, **options)


def end_of(run: Path) -> tuple[Any, ...]:
    """Everything that makes the last checkpoint, and the log, without its times."""
    _, arrays, progress = load_progress(Run(run).checkpoint(STEPS))
    numbers = {name: array.tobytes() for name, array in {**arrays, **progress.moments}.items()}
    losses = [(entry["step"], entry["loss"], entry["grad_norm"]) for entry in Run(run).entries()]
    return numbers, progress.fields["row"], losses


@contextmanager
def one_bad_batch(wing: str, folder: Path) -> Iterator[None]:
    """The batch of the third step has no finite loss, whenever it is met."""
    sums: list[int] = []
    trainer = WINGS[wing].Trainer
    original = trainer.step

    def step(self: Any, windows: np.ndarray, rates: Any) -> Any:
        sums.append(hash(windows.tobytes()))
        if len(sums) >= STEPS and sums[-1] == sums[2]:
            return Outcome(float("nan"), float("nan"), ["norm"])
        return original(self, windows, rates)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "step", step)
        train(folder / "to see its batches", wing)
        yield


class Trial:
    """A run that saves, samples, validates and prunes, and what it leads to if nothing happens."""

    def __init__(self, folder: Path, wing: str, recipe: palm.Recipe = RECIPE) -> None:
        self.folder, self.wing, self.recipe = folder, wing, recipe
        self.text = folder / "text"
        self.text.write_bytes(TEXT)
        self._train(folder / "first")  # the first plot of a process makes folders of matplotlib's own
        self.calls = changes(lambda: self._train(folder / "whole"))
        self.end = end_of(folder / "whole")

    def _train(self, run: Path) -> None:
        train(run, self.wing, self.text, self.recipe, cadence=BUSY)

    def fails(self, call: int, error: int) -> bool:
        """Whether the run ends with an error if that change of the disk fails; nothing may be lost then."""
        run = self.folder / f"run-{call}-{error}"
        raised = fails(lambda: self._train(run), call, error)
        assert raised is None or isinstance(raised, palm.PalmError), raised
        self._goes_on(run, call)
        return raised is not None

    def dies(self, call: int) -> bool:
        """Whether the run is killed if that change of the disk is its last one; nothing may be lost then."""
        run = self.folder / f"killed-{call}"
        is_dead = killed(lambda: self._train(run), call)
        self._goes_on(run, call)
        return is_dead

    def _goes_on(self, run: Path, call: int) -> None:
        if Run(run).is_run:
            assert Run(run).checkpoints()
            palm.resume(run, cadence=BUSY)
        else:
            self._train(run)
        assert end_of(run) == self.end, call
        with Run(run).locked():  # the next start clears away what could not be deleted
            left = [path.name for path in run.iterdir() if path.name.startswith(".")]
            assert left == [".lock"], call


def spread(calls: list[str], count: int) -> list[int]:
    """So many of the numbers of calls, evenly."""
    return [int(at) for at in np.linspace(1, len(calls), count)]
