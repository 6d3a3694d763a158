"""The runs below a folder: how far each is, its losses, how they differ. Only settings and logs are read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palm.checkpoint.manifest import METRICS, RUN_SETTINGS
from palm.errors import PalmError, RunError
from palm.training.run_folder import Run
from palm.training.trained import Entry


@dataclass(frozen=True)
class ListedRun:
    """A run: its folder, its name below the folder that was listed, its log, and its settings.

    `steps` are those of its recipe, `settings` the fields of config and recipe without them, and the backend,
    the device, the attention path, the data (name and digest), the tokenizer's digest, and of a run that
    began from a checkpoint its name and the digest of the weights.
    """

    path: Path
    name: str
    steps: int
    settings: dict[str, Any]
    entries: list[Entry]

    @property
    def step(self) -> int:
        """The last step that was made."""
        return int(self.entries[-1]["step"]) if self.entries else 0

    def last(self, name: str) -> float | None:
        """The last number of that name in the log."""
        return next((entry[name] for entry in reversed(self.entries) if name in entry), None)

    @property
    def best(self) -> Entry | None:
        """The entry of the lowest validation loss."""
        measured = [entry for entry in self.entries if "val_loss" in entry]
        return min(measured, key=lambda entry: entry["val_loss"], default=None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; losses in nats."""
        best = self.best
        return {
            "run": self.name,
            "path": str(self.path),
            "step": self.step,
            "steps": self.steps,
            "tokens": self.last("tokens"),
            "loss": self.last("loss"),
            "val_loss": self.last("val_loss"),
            "best_val_loss": best and best["val_loss"],
            "best_step": best and int(best["step"]),
            "settings": self.settings,
        }


@dataclass(frozen=True)
class RunList:
    """The runs below a folder in the order of their names, and why others cannot be read, in a line each."""

    folder: Path
    runs: list[ListedRun]
    damaged: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "folder": str(self.folder),
            "differing": differing(self.runs),
            "runs": [run.to_dict() for run in self.runs],
            "damaged": self.damaged,
        }


def list_runs(folder: Path) -> RunList:
    """All runs in `folder` and below it; links are not followed, and nothing inside a run is looked at.

    Raises `RunError` if the folder cannot be read.
    """
    if not folder.is_dir():
        raise RunError(f"folder must be a folder with runs in it; got folder={folder}. Check the path.")
    runs: list[ListedRun] = []
    damaged: dict[str, str] = {}

    def unreadable(error: OSError) -> None:
        damaged[os.path.relpath(error.filename, folder)] = f"the folder cannot be read: {error.strerror}"

    for place, below, files in os.walk(folder, onerror=unreadable):
        below.sort()
        if RUN_SETTINGS not in files and METRICS not in files:
            continue
        below.clear()
        name = os.path.relpath(place, folder) if Path(place) != folder else folder.resolve().name
        try:
            runs.append(read_run(Path(place), name))
        except PalmError as error:
            damaged[name] = " ".join(str(error).split())
    return RunList(folder, runs, damaged)


def read_run(path: Path, name: str) -> ListedRun:
    """The run in the folder `path`. Raises `RunError` if it is none or damaged."""
    run = Run(path)
    settings = run.settings()
    data = settings["data"]
    text = "an array" if data["path"] is None else Path(data["path"]).name
    recipe = dict(settings["recipe"])
    steps = recipe.pop("steps")
    told = {
        **settings["config"],
        **recipe,
        **{name: settings[name] for name in ("backend", "device", "attention")},
        "data": f"{text} {data['digest'][:8]}",
        "tokenizer": (data.get("tokenizer_digest") or "none")[:8],
    }
    if "start" in settings:
        told["start"] = start_in_words(settings["start"])
    return ListedRun(path, name, steps, told, run.entries())


def start_in_words(start: Mapping[str, Any]) -> str:
    """The name of the checkpoint that a run began from, and the digest of its weights."""
    if start["checkpoint"] is None:
        return f"arrays {start['weights'][:8]}"
    path = Path(start["checkpoint"])
    name = os.path.join(path.parent.name, path.name) if path.name.startswith("step-") else path.name
    return f"{name} {start['weights'][:8]}"


def differing(runs: Sequence[ListedRun]) -> list[str]:
    """The settings that are not the same in all of the runs, in their order."""
    settings: list[Mapping[str, Any]] = [run.settings for run in runs]
    names = dict.fromkeys(name for one in settings for name in one)
    return [name for name in names if any(one.get(name) != settings[0].get(name) for one in settings)]


def table(runs: Sequence[ListedRun]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a table: losses in nats, and a column for each setting that differs."""
    names = differing(runs)
    rows = [[*_row(run), *(_in_words(run.settings.get(name)) for name in names)] for run in runs]
    return ["run", "step", "loss", "validation", "lowest", *names], rows


def _row(run: ListedRun) -> list[str]:
    lowest = run.best
    losses = (run.last("loss"), run.last("val_loss"), lowest["val_loss"] if lowest else None)
    return [
        run.name,
        f"{run.step}/{run.steps}",
        *("" if loss is None else f"{loss:.4f}" if abs(loss) < 1e6 else f"{loss:.4g}" for loss in losses),
    ]


def _in_words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)
