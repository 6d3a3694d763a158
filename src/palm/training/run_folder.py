"""The folder of a run: its settings, its log and its checkpoints. A kill at any moment costs only steps.

RUN/run.json         config, recipe, data and options, sealed with its own SHA-256
RUN/metrics.jsonl    one line a step; what lies after the checkpoint that is resumed is cut off
RUN/samples.jsonl    text sampled on the way, if asked for
RUN/step-00000100/   checkpoints (palm.checkpoint.checkpoint), each complete or absent
RUN/tokenizer.json   or tokenizer.model, if there is one
RUN/loss.png         at the end
RUN/.lock            held by the process that trains (palm.training.lock)
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from palm.checkpoint.checkpoint import save_arrays
from palm.checkpoint.locate import BEST, LAST, best_of, checkpoints_of
from palm.checkpoint.manifest import METRICS, RUN_SETTINGS, TOKENIZERS
from palm.checkpoint.progress import Progress
from palm.checkpoint.tokenizer import run_tokenizer
from palm.config import PaLMConfig
from palm.data.tokenizer import Tokenizer
from palm.data.tokenizer_file import FileTokenizer
from palm.errors import RunError
from palm.files.hidden import delete, remove
from palm.files.sealed import sealed
from palm.files.write import append, fsync, remedy, replace_file
from palm.training.lock import LOCK, only_writer
from palm.training.run_files import FORMAT, SAMPLES, VERSION, read_log, read_settings

# There while a new run has no settings yet.
STARTING = ".starting"
SETTINGS, PLOT = RUN_SETTINGS, "loss.png"
# What a checkpoint or a rewritten file is called while it is not, or no longer, one.
_TEMPORARY = re.compile(
    r"\.starting|\.(step-\d+|run\.json|metrics\.jsonl|samples\.jsonl|tokenizer\.\w+)\.(tmp|old)(-[0-9a-f]+)?"
)


class Run:
    """A run folder that this process alone writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: int | None = None  # the folder itself, whatever its name, while it is locked

    @contextmanager
    def locked(self, *, new: bool = False) -> Iterator[None]:
        """Keep other processes out, and clear away what a killed one left.

        Raises `RunError` if the folder is in use, or is not empty though it should be `new`.
        """
        made = self._make() if new else []
        with only_writer(self.path), self._holding():
            with self._looking():
                left = self._left(new)
            starting = self.path / STARTING
            with self.writing():
                # The mark goes last: killed in here, such a start is still known for what it is.
                for entry in sorted(left, key=lambda entry: entry == starting):
                    remove(entry)
                if new:
                    starting.touch()
            try:
                yield
            except BaseException:
                if new:
                    self._take_back(made)
                raise

    @contextmanager
    def _holding(self) -> Iterator[None]:
        with self._looking():
            self._held = os.open(self.path, os.O_RDONLY)
        try:
            yield
        finally:
            os.close(self._held)
            self._held = None

    def _take_back(self, made: list[Path]) -> None:
        """Of a start of which nothing came, remove what it has made; a folder that was there stays."""
        with suppress(OSError):
            if {*self.path.iterdir()} == {self.path / STARTING, self.path / LOCK}:
                for file in (STARTING, LOCK):
                    (self.path / file).unlink()
                for folder in made:
                    folder.rmdir()

    def check_new(self) -> None:
        """Raise `RunError` if the folder has anything in it already."""
        with self._looking():
            if self.path.is_dir():
                self._left(new=True)

    def _make(self) -> list[Path]:
        """Make the folder, and those above; which ones were missing, the lowest first."""
        made = [folder for folder in (self.path, *self.path.parents) if not os.path.lexists(folder)]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"out must be a writable folder; got out={self.path}: {error.strerror}. {remedy(error)}"
            ) from None
        with self._looking():
            if not (self.path / LOCK).exists():  # never a run's: refused before the lock's file is made
                self._left(new=True)
        return made

    def _left(self, new: bool) -> list[Path]:
        """What a killed process left, to be cleared away. Raises `RunError` if a `new` run has more."""
        there = [entry for entry in self.path.iterdir() if entry.name != LOCK]
        left = [entry for entry in there if _TEMPORARY.fullmatch(entry.name)]
        kept = [entry for entry in there if entry not in left]
        begun = {self.path_of(0), *(self.path / name for name in TOKENIZERS)}
        if new and self.path / STARTING in left and begun.issuperset(kept):
            # The settings come after the first checkpoint: such a start was killed in between.
            return there
        if new and kept:
            raise RunError(
                f"out must be a new or empty folder; got out={self.path}. "
                "Continue the run in it with --resume (palm.resume), or choose another folder."
            )
        return left

    @property
    def is_run(self) -> bool:
        """Whether the folder has settings. Raises `RunError` if it cannot be read."""
        return self._has(SETTINGS)

    def settings(self) -> dict[str, Any]:
        """The contents of run.json. Raises `RunError` if it is absent or not as it was written."""
        return read_settings(self.path)

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Replace run.json as a whole."""
        self._replace(SETTINGS, sealed({"format": FORMAT, "version": VERSION, **settings}).encode())
        with self.writing():
            (self.path / STARTING).unlink(missing_ok=True)

    def tokenizer(self) -> Tokenizer | None:
        """The run's tokenizer, of which the folder keeps a copy; None for ids that came without one.

        Raises `RunError` if it is another one.
        """
        return run_tokenizer(self.path, self.settings()["data"])

    def keep_tokenizer(self, tokenizer: FileTokenizer | None) -> None:
        """Write the tokenizer's file into the folder, unless it is there."""
        if tokenizer is not None and not self._has(tokenizer.file):
            self._replace(tokenizer.file, tokenizer.content)

    def checkpoints(self) -> dict[int, Path]:
        """Every checkpoint by its step, ascending. Raises `RunError` if the folder cannot be read."""
        with self._looking():
            return checkpoints_of(self.path)

    def checkpoint(self, which: str | int = LAST) -> Path:
        """The checkpoint of "last", "best" (lowest validation loss), or a step. Raises `RunError`."""
        found = self.checkpoints() if os.path.isdir(self.path) else {}
        if not found:
            raise RunError(f"{self.path} must have a checkpoint; it has none. Train first.")
        if which == LAST:
            return found[max(found)]
        if which == BEST:
            step = best_of(found)
            if step is None:
                raise RunError(f"{self.path} has no validation loss to choose the best by. Use last.")
            return found[step]
        if str(which).isdecimal() and int(which) in found:
            return found[int(which)]
        raise RunError(
            f"checkpoint must be last, best, or one of {', '.join(map(str, found))}; got checkpoint={which}."
        )

    def path_of(self, step: int) -> Path:
        """Where the checkpoint of a step belongs."""
        return self.path / f"step-{step:08d}"

    def save(
        self,
        step: int,
        config: PaLMConfig,
        arrays: Mapping[str, np.ndarray],
        progress: Progress,
        tokenizer: FileTokenizer | None,
    ) -> None:
        """Write the checkpoint of a step. Raises what `save_arrays` raises."""
        save_arrays(config, arrays, self.path_of(step), progress=progress, tokenizer=tokenizer)

    def prune(self, keep: int, *, since: int | None = None) -> None:
        """Delete all but the newest `keep` checkpoints, those of step `since` and later, and the best one."""
        found = self.checkpoints()
        kept = {*list(found)[-keep:], best_of(found)}
        kept |= {step for step in found if since is not None and step >= since}
        for step in found:
            if step not in kept:
                self.delete(step)

    def delete(self, step: int) -> None:
        """Delete a checkpoint, of a link only the link; it stops being one before its first file goes."""
        with self.writing():
            delete(self.path_of(step))

    def log(self, entry: Mapping[str, Any], file: str = METRICS) -> None:
        """Append one line. A checkpoint's lines reach the disk before it does: see `sync`."""
        with self.writing():
            append(self.path / file, (json.dumps(entry) + "\n").encode())

    def sync(self) -> None:
        """Wait until the log is on the disk."""
        with self.writing():
            for file in (METRICS, SAMPLES):
                if (self.path / file).exists():
                    fsync(self.path / file)

    def entries(self, file: str = METRICS) -> list[dict[str, Any]]:
        """All complete lines of a log that are its own: of METRICS, numbers. Raises `RunError`."""
        return read_log(self.path / file)

    def cut(self, step: int) -> None:
        """Take out of the logs what comes after `step`."""
        for file in (METRICS, SAMPLES):
            if self._has(file):
                kept = [entry for entry in self.entries(file) if entry["step"] <= step]
                self._replace(file, "".join(json.dumps(entry) + "\n" for entry in kept).encode())

    def _has(self, name: str) -> bool:
        with self._looking():
            return (self.path / name).exists()

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Turn what goes wrong while the folder is looked at into a `RunError`."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"run must be a folder that can be read; got run={self.path}: {error.strerror}. "
                "Mend that disk, or restore another copy."
            ) from error

    def _replace(self, name: str, content: bytes) -> None:
        with self.writing():
            replace_file(self.path / name, content)

    def follow(self) -> bool:
        """Go to where the locked folder is now, if it was moved; whether it is anywhere that we know of."""
        moved = self._moved()
        self.path = moved or self.path
        return moved is not None

    def _moved(self) -> Path | None:
        """Where the locked folder is now; None if it is gone, or the system does not say where."""
        with suppress(OSError):
            for place in (self.path, Path(os.readlink(f"/proc/self/fd/{self._held}"))):
                if self._is_held(place):
                    return place
        return None

    def _is_held(self, path: Path) -> bool:
        try:
            return self._held is None or os.path.samestat(path.stat(), os.fstat(self._held))
        except OSError:
            return False

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what goes wrong while something is written into a `RunError`; that the folder is gone, too."""
        if not self._is_held(self.path):
            moved = self._moved()
            fix = f"It is {moved} now, and what could be saved is in there" if moved else "Put that one back"
            raise RunError(
                f"run must stay where it is while it is trained; got run={self.path}, which is no longer the "
                f"folder that it was. {fix}: go on with --resume (palm.resume)."
            )
        try:
            yield
        except OSError as error:
            raise RunError(
                f"run must be a writable folder; got run={self.path}: {error.strerror}. {remedy(error)} "
                "Then go on with --resume (palm.resume)."
            ) from error
