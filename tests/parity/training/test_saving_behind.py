"""Checkpoints that are written while the steps go on are the same ones, and no promise is broken."""

from __future__ import annotations

import dataclasses
import errno
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cases import ask_to_stop
from runs import (
    BUSY,
    CONFIG,
    RECIPE,
    REWINDING,
    TEXT,
    WINGS,
    Trial,
    bad_batch,
    end_of,
    spread,
    third_batch,
    train,
)

import palm
from palm import memory
from palm.checkpoint.background import Background
from palm.spec.sizes import describe
from palm.training import run_folder
from palm.training.run_folder import Run

BEHIND = palm.Cadence(checkpoint_every=2, keep=9, save_behind=True)
LATE = 0.3


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*"))}


def slow(monkeypatch: Any, go_on: threading.Event | None = None) -> None:
    """Let the checkpoint of step 2 take long, or until it is told to go on."""
    original = run_folder.save_arrays

    def save(config: Any, arrays: Any, path: Path, **options: Any) -> Path:
        if path.name == "step-00000002":
            assert go_on is None or go_on.wait(60)
            time.sleep(LATE)
        return original(config, arrays, path, **options)

    monkeypatch.setattr(run_folder, "save_arrays", save)


def left(run: Path) -> list[str]:
    return [entry.name for entry in run.iterdir() if entry.name.startswith(".")]


@pytest.mark.parametrize("wing", WINGS)
def test_the_checkpoints_are_those_that_are_written_at_once(tmp_path, wing):
    ends = []
    for behind in (False, True):
        run = tmp_path / str(behind)
        train(run, wing, cadence=dataclasses.replace(BEHIND, save_behind=behind))
        ends.append([files(path) for path in Run(run).checkpoints().values()])
        assert left(run) == [".lock"]
    assert ends[0] == ends[1]
    assert len(ends[0]) == 3


@pytest.mark.parametrize("wing", WINGS)
def test_the_steps_go_on_meanwhile(tmp_path, monkeypatch, wing):
    run, go_on, there = tmp_path / "run", threading.Event(), {}
    slow(monkeypatch, go_on)

    def on_step(entry: dict[str, Any]) -> None:
        there[entry["step"]] = sorted(Run(run).checkpoints())
        if entry["step"] == 3:
            go_on.set()

    train(run, wing, cadence=BEHIND, on_step=on_step)
    last = there.pop(4)  # its own checkpoint is begun, and may be written
    assert there == {1: [0], 2: [0], 3: [0]}
    assert last[:2] == [0, 2]
    assert sorted(Run(run).checkpoints()) == [0, 2, 4]
    whole = train(tmp_path / "whole", wing)
    assert end_of(run) == end_of(whole.path)


def test_without_it_the_step_waits(tmp_path, monkeypatch):
    there = []
    slow(monkeypatch)
    cadence = dataclasses.replace(BEHIND, save_behind=False)
    train(tmp_path, cadence=cadence, on_step=lambda entry: there.append(sorted(Run(tmp_path).checkpoints())))
    assert there == [[0], [0, 2], [0, 2], [0, 2, 4]]


@pytest.mark.parametrize("wing", WINGS)
def test_what_goes_wrong_ends_the_run_at_the_next_step(tmp_path, monkeypatch, wing):
    run, steps = tmp_path / "run", []
    original = run_folder.save_arrays

    def save(config: Any, arrays: Any, path: Path, **options: Any) -> Path:
        if path.name == "step-00000002":
            raise palm.CheckpointError("path must be writable")
        return original(config, arrays, path, **options)

    monkeypatch.setattr(run_folder, "save_arrays", save)

    def on_step(entry: dict[str, Any]) -> None:
        steps.append(entry["step"])
        time.sleep(LATE)

    with pytest.raises(palm.CheckpointError, match="path must be writable"):
        train(run, wing, cadence=BEHIND, on_step=on_step)
    assert steps == [1, 2]
    monkeypatch.undo()
    palm.resume(run, data=TEXT)
    assert end_of(run) == end_of(train(tmp_path / "whole", wing).path)


@pytest.mark.parametrize("how", ["error", "signal", "end"])
def test_whatever_ends_the_run_waits_for_it(tmp_path, monkeypatch, how):
    slow(monkeypatch)

    def on_step(entry: dict[str, Any]) -> None:
        if entry["step"] == 2 and how == "signal":
            ask_to_stop(15)
        if entry["step"] == 2 and how == "error":
            raise IndexError("x")

    recipe = dataclasses.replace(RECIPE, steps=2 if how == "end" else 4)
    options = {"cadence": BEHIND, "on_step": on_step, "recipe": recipe}
    if how == "error":
        with pytest.raises(IndexError, match="x") as raised:
            train(tmp_path, **options)
        assert not hasattr(raised.value, "__notes__")
    else:
        train(tmp_path, **options)
    assert sorted(Run(tmp_path).checkpoints()) == [0, 2]
    assert left(tmp_path) == [".lock"]
    assert not [thread for thread in threading.enumerate() if thread.name == "palm checkpoint"]


def test_a_rewind_waits_for_the_checkpoint_that_it_goes_back_to(tmp_path, monkeypatch):
    bad, ends = third_batch("torch", tmp_path), []
    slow(monkeypatch)
    for behind in (False, True):
        run = tmp_path / str(behind)
        with bad_batch("torch", bad):
            train(run, recipe=REWINDING, cadence=dataclasses.replace(BUSY, save_behind=behind))
        ends.append(end_of(run))
    assert ends[0] == ends[1]


def test_the_lines_of_the_log_are_on_the_disk_before_the_checkpoint(tmp_path, monkeypatch):
    synced, original, save = [], Run.sync, run_folder.save_arrays

    def sync(self: Run) -> None:
        original(self)
        synced.append(len(self.entries()) if (self.path / run_folder.METRICS).exists() else 0)

    def saved(config: Any, arrays: Any, path: Path, **options: Any) -> Path:
        assert synced[-1] >= int(path.name[5:])
        return save(config, arrays, path, **options)

    monkeypatch.setattr(Run, "sync", sync)
    monkeypatch.setattr(run_folder, "save_arrays", saved)
    train(tmp_path, cadence=BEHIND)
    assert len(synced) == 3


def test_a_second_interrupt_while_it_is_waited_for_loses_nothing(tmp_path, monkeypatch):
    slow(monkeypatch)
    join, interrupted = Background.join, []

    def once(self: Background) -> None:
        if self.busy and not interrupted:
            interrupted.append(1)
            raise KeyboardInterrupt
        join(self)

    monkeypatch.setattr(Background, "join", once)
    with pytest.raises(KeyboardInterrupt) as raised:
        train(tmp_path, cadence=BEHIND, recipe=dataclasses.replace(RECIPE, steps=2))
    assert interrupted
    assert not hasattr(raised.value, "__notes__")
    assert sorted(Run(tmp_path).checkpoints()) == [0, 2]


@pytest.mark.parametrize("wing", WINGS)
def test_a_run_that_dies_or_whose_disk_fails_goes_on_bit_for_bit(tmp_path, wing):
    """A sample of all moments; the endurance tests have each."""
    trial = Trial(tmp_path, wing, behind=True)
    assert all(trial.dies(call) for call in spread(trial.calls, 3))
    assert sum(trial.fails(call, errno.ENOSPC) for call in spread(trial.calls, 3))


@pytest.mark.parametrize("behind", [False, True])
def test_its_memory_is_counted(tmp_path, monkeypatch, behind):
    needed = describe(CONFIG.resolve("torch")).total * 4 * 6  # between both
    monkeypatch.setattr(memory, "free_memory", lambda: needed)
    cadence = dataclasses.replace(BEHIND, save_behind=behind)
    if behind:
        with pytest.raises(palm.ConfigError, match="memory must hold the training"):
            train(tmp_path / "run", cadence=cadence)
    else:
        train(tmp_path / "run", cadence=cadence)
