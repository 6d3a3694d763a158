"""Which checkpoint a path means: a checkpoint's own directory, or the newest or the best one of a run.

    RUN                 the newest checkpoint of the run in the folder RUN
    RUN/best            its checkpoint of the lowest validation loss
    RUN/last            the newest one, by name
    RUN/step-00000100   this one

Whatever takes a checkpoint takes all four: they are paths, so the command line and Python spell them alike.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from palm.checkpoint.manifest import MANIFEST, RUN_SETTINGS, TRAINING
from palm.errors import CheckpointError
from palm.files.hidden import recover
from palm.files.objects import MOST_BYTES, MalformedError, parse_object
from palm.files.read import read_file

LAST, BEST = "last", "best"
_STEP = re.compile("step-([0-9]{8,})")


def checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """The checkpoint directory that `path` means; a path that names no run is returned as it is.

    A checkpoint whose saving was killed between two renames has its name again afterwards. Raises
    `CheckpointError` for a run without checkpoints, for `RUN/best` without a validation loss, and for what
    cannot be read.
    """
    path = Path(path)
    try:
        return _meant(path)
    except OSError as error:
        raise CheckpointError(
            f"path must be a folder that can be read; got path={path}: {error.strerror}. "
            "Restore another copy."
        ) from error


def _meant(path: Path) -> Path:
    with suppress(ValueError):  # no name of a file: nothing is there either
        recover(path)
    if (path / RUN_SETTINGS).is_file() and not (path / MANIFEST).exists():
        run, which = path, LAST
    elif path.name in (LAST, BEST) and not path.exists() and (path.parent / RUN_SETTINGS).is_file():
        run, which = path.parent, path.name
    else:
        return path
    found = checkpoints_of(run)
    if not found:
        raise CheckpointError(
            f"path must have a checkpoint; got path={path}, a run that has none. Train first."
        )
    step = max(found) if which == LAST else best_of(found)
    if step is None:
        raise CheckpointError(
            f"path must have a validation loss to choose the best by; got path={path}, a run without one. "
            f"Use {run}, which is its newest checkpoint."
        )
    return found[step]


def checkpoints_of(run: Path) -> dict[int, Path]:
    """Every checkpoint in the folder of a run by its step, ascending."""
    found = {int(match[1]): entry for entry in run.iterdir() if (match := _STEP.fullmatch(entry.name))}
    return dict(sorted(found.items()))


def best_of(found: Mapping[int, Path]) -> int | None:
    """The step of the lowest validation loss, the earlier of equal ones; None where none was measured."""
    losses = {}
    for step, path in found.items():
        try:
            loss = parse_object(read_file(path / TRAINING, MOST_BYTES)).get("val_loss")
        except (OSError, MalformedError):
            continue
        if isinstance(loss, (int, float)) and not isinstance(loss, bool):
            losses[step] = loss
    return min(losses, key=lambda step: (losses[step], step)) if losses else None
