"""Several processes that save one checkpoint: as threads, or as processes of which one may die."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import CONFIG, NEW
from disks import Disk

from palm import PalmError
from palm.checkpoint.progress import Progress
from palm.checkpoint.team import Team, save_pieces
from palm.files import write
from palm.spec.boxes import Piece

State = tuple[dict[str, np.ndarray], Progress]
REFUSED, BROKEN, DIED = 3, 4, 9
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["teams"])


def cut(arrays: Mapping[str, np.ndarray], owners: int, seed: int = 0) -> list[list[Piece]]:
    """Arrays in pieces, cut and dealt at random; each owner has some of each larger one."""
    rng = random.Random(seed)
    dealt: list[list[Piece]] = [[] for _ in range(owners)]
    for name, array in arrays.items():
        pieces = _halved(name, (0,) * array.ndim, array, rng, 3)
        rng.shuffle(pieces)
        for number, piece in enumerate(pieces):
            dealt[(number + rng.randrange(2)) % owners].append(piece)
    return dealt


def _halved(
    name: str, start: tuple[int, ...], array: np.ndarray, rng: random.Random, depth: int
) -> list[Piece]:
    axis = rng.randrange(array.ndim)
    if not depth or array.shape[axis] == 1:
        return [Piece(name, start, array)]
    at = rng.randint(1, array.shape[axis] - 1)
    later = tuple(first + at * (i == axis) for i, first in enumerate(start))
    one, other = np.split(array, [at], axis)
    return _halved(name, start, one, rng, depth - 1) + _halved(name, later, other, rng, depth - 1)


def dealt(state: State, owners: int = 2) -> list[list[Piece]]:
    """The pieces of a run in progress that each of so many owns."""
    return cut({**state[0], **state[1].moments}, owners)


def save(team: Team, folder: Path, state: State = NEW) -> Path:
    """What each process of a team does to save a run in progress."""
    pieces = dealt(state, team.processes)[team.process]
    return save_pieces(CONFIG, pieces, folder / "model", team, overwrite=True, fields=state[1].fields)


class Told:
    """What the first of several threads shares."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count)
        self.content = b""

    def team(self, process: int) -> Team:
        def share(content: bytes) -> bytes:
            if process == 0:
                self.content = content
            self.barrier.wait(60)
            told = self.content
            self.barrier.wait(60)
            return told

        return Team(process, self.barrier.parties, share, lambda: _none(self.barrier.wait(60)))


def together(count: int, action: Callable[[Team], Any]) -> list[Any]:
    """What an action gives, or raises, in each of a team of threads."""
    told, results = Told(count), [None] * count

    def run(process: int) -> None:
        try:
            results[process] = action(told.team(process))
        except Exception as error:
            results[process] = error

    threads = [threading.Thread(target=run, args=(process,)) for process in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def _none(_: Any) -> None:
    """Nothing."""


def ended(
    action: Callable[..., Any], folder: Path, count: int, *, dies: int | None = None, at: int = 0
) -> tuple[list[int], int]:
    """How each process of a team ends, of which `dies` is killed at its `at`-th change of a file.

    And how many changes that one makes, if it lives. The others are told that it is gone, as by a framework.
    """
    barrier, changes = _PROCESSES.Barrier(count), _PROCESSES.Value("i", 0)
    told, length = _PROCESSES.Array("c", 4096), _PROCESSES.Value("i", 0)
    given = [
        (action, folder, process, barrier, told, length, (at if process == dies else None), changes)
        for process in range(count)
    ]
    processes = [_PROCESSES.Process(target=_member, args=one) for one in given]
    for process in processes:
        process.start()
    if dies is not None:
        processes[dies].join(120)
        if processes[dies].exitcode == DIED:
            barrier.abort()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes], changes.value


def _member(
    action: Callable[..., Any],
    folder: Path,
    process: int,
    barrier: Any,
    told: Any,
    length: Any,
    at: int | None,
    changes: Any,
) -> None:
    def wait() -> None:
        barrier.wait(120)

    def share(content: bytes) -> bytes:
        if process == 0:
            told[: len(content)], length.value = content, len(content)
        wait()
        found = told[: length.value]
        wait()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "_SMALL", 0)  # each piece is a change of its own
        disk = Disk(at or 0, lambda: os._exit(DIED))
        if at is not None:
            disk.install(patch)
        try:
            action(Team(process, barrier.parties, share, wait), folder)
        except PalmError:
            os._exit(REFUSED)
        except threading.BrokenBarrierError:
            os._exit(BROKEN)
        if at is not None:
            changes.value = len(disk.calls)
