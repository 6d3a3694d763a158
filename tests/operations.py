"""What palm does with files, one operation each: what is there before, and what must be there after.

`done(folder, wing)` does it, in a process that may be killed at any moment. Then `check(folder)` asserts
that the old or the new is there as a whole, and says whether it is the new; `done` once more must leave
nothing else.
"""

from __future__ import annotations

import json
import shutil
import signal
from abc import ABC, abstractmethod
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from cases import draw_tokens
from runs import CONFIG, TEXT, train
from system_calls import changing_calls, settled, tampered

import palm
from palm.checkpoint.checkpoint import load_arrays
from palm.checkpoint.progress import load_progress
from palm.cli import report
from palm.config import Backend
from palm.parity.recording.bundle import read_bundle
from palm.training.run_folder import Run

# All that the operations need is imported before their processes are forked.
PRELOADED = (plt, palm.compare, palm.record, palm.resume, palm.save, palm.train)
TOKENS = draw_tokens(CONFIG, 2, 6)
OLD, NEW = 0, 1


class Operation(ABC):
    """One operation on a folder, whose name for what it makes is `made`."""

    made: tuple[str, ...] = ("made",)
    # Whose models take part; one stands for both where none does.
    wings: tuple[Backend, ...] = ("torch", "jax")

    def prepare(self, folder: Path) -> None:
        """Put what is there before into an empty folder."""
        self.make(folder, "torch", OLD)

    def done(self, folder: Path, wing: Backend) -> None:
        """The operation, in a process of its own."""
        self.make(folder, wing, NEW)

    @abstractmethod
    def make(self, folder: Path, wing: Backend, seed: int) -> None:
        """Make the old or the new."""

    @abstractmethod
    def check(self, folder: Path) -> bool:
        """Whether it is the new; if not it must be the old."""

    def left(self, folder: Path) -> list[str]:
        """What is in the folder besides what the operation makes."""
        return sorted({entry.name for entry in folder.iterdir()} - {*self.made})


class Overwrite(Operation):
    """A checkpoint is saved over another."""

    def make(self, folder: Path, wing: Backend, seed: int) -> None:
        palm.save(palm.build(CONFIG, backend=wing, seed=seed), folder / "made", overwrite=True)

    def check(self, folder: Path) -> bool:
        found = load_arrays(folder / "made")[1]
        is_new = found["embedding"].tobytes() != _weights(OLD)["embedding"].tobytes()
        expected = _weights(NEW if is_new else OLD)
        assert all(array.tobytes() == expected[name].tobytes() for name, array in found.items())
        return is_new


class Save(Overwrite):
    """A checkpoint is saved where there is none."""

    def prepare(self, folder: Path) -> None:
        """Nothing is there."""

    def check(self, folder: Path) -> bool:
        return (folder / "made").exists() and super().check(folder)


class Record(Operation):
    """A recording replaces another."""

    def make(self, folder: Path, wing: Backend, seed: int) -> None:
        palm.record(palm.build(CONFIG, backend=wing, seed=seed), TOKENS, folder / "made", label=str(seed))

    def check(self, folder: Path) -> bool:
        return read_bundle(folder / "made").label == str(NEW)


class Report(Operation):
    """A report replaces another, as a page and as JSON."""

    made = ("report.html", "report.json", "comparison.json")
    wings = ("torch",)

    def prepare(self, folder: Path) -> None:
        one, other = (palm.build(CONFIG, backend="torch", seed=seed) for seed in (OLD, NEW))
        found = palm.compare(one, other, TOKENS).to_dict()
        (folder / "comparison.json").write_text(json.dumps(found))
        super().prepare(folder)

    def make(self, folder: Path, wing: Backend, seed: int) -> None:
        found = json.loads((folder / "comparison.json").read_text())
        with redirect_stdout(StringIO()):
            report.show({**found, "run": {}, "verdict": f"seed {seed}"}, folder)

    def check(self, folder: Path) -> bool:
        page, plain = ((folder / name).read_text() for name in self.made[:2])
        assert page.rstrip().endswith("</html>")
        seeds = [seed for seed in (OLD, NEW) if f"seed {seed}" in page]
        assert len(seeds) == 1
        of_plain = int(json.loads(plain)["verdict"].removeprefix("seed "))
        assert of_plain <= seeds[0]  # the page comes first
        return of_plain == NEW


class Prune(Operation):
    """Old checkpoints of a run are deleted, and a killed process's remains cleared away."""

    wings = ("torch",)

    def prepare(self, folder: Path) -> None:
        train(folder / "made", data=TEXT, cadence=palm.Cadence(checkpoint_every=1, keep=9))

    def make(self, folder: Path, wing: Backend, seed: int) -> None:
        with Run(folder / "made").locked():
            Run(folder / "made").prune(1)

    def check(self, folder: Path) -> bool:
        found = Run(folder / "made").checkpoints()
        newest = max(found)
        for path in found.values():
            load_progress(path)
        assert newest == 4
        return len(found) <= 2  # the newest one and the best one

    def left(self, folder: Path) -> list[str]:
        hidden = [entry.name for entry in (folder / "made").iterdir() if entry.name.startswith(".")]
        return super().left(folder) + [name for name in hidden if name != ".lock"]


OPERATIONS: dict[str, Operation] = {
    "save": Save(),
    "save(overwrite)": Overwrite(),
    "record": Record(),
    "report": Report(),
    "prune": Prune(),
}


def do(name: str, folder: Path, wing: Backend) -> None:
    """The operation of that name."""
    OPERATIONS[name].done(folder, wing)


def fresh(prepared: Path, folder: Path) -> Path:
    """A copy of what is there before an operation."""
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(prepared, folder))


def survives_kills(name: str, wing: str, folder: Path, stride: int = 1) -> int:
    """Kill an operation at one in `stride` of the calls by which it changes files; how many those are.

    Asserts that the old or the new is there after each, and that the next one clears up.
    """
    operation, before, place = OPERATIONS[name], folder / "before", folder / "place"
    before.mkdir()
    operation.prepare(before)
    calls = settled(lambda: changing_calls(do, name, fresh(before, place), wing, folder=place))
    assert operation.check(place)
    found = []
    for call in calls[::-stride][::-1]:  # with the last one
        ended = tampered(call, "signal=KILL", do, name, fresh(before, place), wing)
        assert ended == -signal.SIGKILL, call
        found.append(operation.check(place))
        do(name, place, "torch")
        assert operation.check(place), call
        assert operation.left(place) == [], call
    assert found == sorted(found)  # first always the old, then always the new
    assert {*found} == {False, True}
    return len(found)


def _weights(seed: int) -> dict[str, Any]:
    return palm.to_numpy(palm.build(CONFIG, backend="torch", seed=seed))
