"""A disk that fails when it is read, or gives less than it is asked for, costs a run nothing."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from io import FileIO
from typing import Any

import numpy as np
import pytest
from cases import ask_to_stop
from disks import fails_to_look
from runs import CONFIG, STEPS, TEXT, WINGS, end_of, spread, train

import palm
from palm.checkpoint.checkpoint import load_arrays
from palm.files import read
from palm.parity.programs.trace import read_trace
from palm.parity.recording.bundle import read_bundle
from palm.training.run_folder import Run

IDS = np.frombuffer(TEXT, np.uint8)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The ends of a run that nothing happened to, in each wing."""
    folder = tmp_path_factory.mktemp("unbroken")
    return {wing: end_of(train(folder / wing, wing).path) for wing in WINGS}


def stop_after_two(entry: dict[str, Any]) -> None:
    if entry["step"] == 2:
        ask_to_stop(signal.SIGINT)


def test_a_disk_that_cannot_be_read_is_one_error_or_none(tmp_path, unbroken):
    """A sample of all looks at the folder, one fails; and each kind of path that means a checkpoint."""
    before, run = tmp_path / "before", tmp_path / "run"
    assert train(before, on_step=stop_after_two).interrupted

    def look(number: int) -> tuple[Exception | None, int]:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(before, run)
        return fails_to_look(lambda: palm.resume(run, data=TEXT), number, errno.EIO, run)

    _, count = look(0)
    found = [look(number)[0] for number in spread([""] * count, 6)]
    assert all(raised is None or isinstance(raised, palm.PalmError) for raised in found), found
    assert any(found)
    if not Run(run).entries()[STEPS - 1 :]:
        palm.resume(run, data=TEXT)
    assert end_of(run) == unbroken["torch"]


def test_a_checkpoint_that_cannot_be_looked_at_is_one_error(tmp_path):
    run = train(tmp_path / "run").path
    for path in (run, run / "best"):
        _, count = fails_to_look(lambda path=path: load_arrays(path), 0, errno.EIO, run)
        assert count > 8
        for number in range(1, count + 1):
            raised, _ = fails_to_look(lambda path=path: load_arrays(path), number, errno.EIO, run)
            assert raised is None or isinstance(raised, palm.PalmError), raised


class InPieces(FileIO):
    """A file of which each read gives five bytes at most, as one may that a signal interrupts."""

    def readinto(self, target: Any) -> int | None:
        return super().readinto(memoryview(target).cast("B")[:5])

    def read(self, size: int = -1) -> bytes | None:
        return super().read(min(size % (1 << 62), 5))


@pytest.mark.parametrize("kind", ["text", "ids.npy"])
@pytest.mark.parametrize("wing", WINGS)
def test_reads_that_give_less_than_was_asked_for_change_nothing(tmp_path, unbroken, monkeypatch, wing, kind):
    run, data, whole = tmp_path / "run", tmp_path / kind, os.read
    data.write_bytes(TEXT)
    if kind == "ids.npy":
        np.save(data, IDS)
    monkeypatch.setattr(read, "FileIO", InPieces)
    monkeypatch.setattr(os, "read", lambda descriptor, size: whole(descriptor, min(size, 5)))
    assert train(run, wing, data, on_step=stop_after_two).interrupted
    palm.resume(run)
    assert end_of(run) == unbroken[wing]


def test_reads_that_give_less_change_no_recording_and_no_archive(tmp_path, monkeypatch):
    model = palm.build(CONFIG, backend="torch")
    tokens = np.arange(12).reshape(2, 6)
    palm.record(model, tokens, tmp_path / "bundle")
    trace = palm.trace(model, tokens).save(tmp_path / "a.trace")
    before = read_bundle(tmp_path / "bundle"), read_trace(trace)
    monkeypatch.setattr(read, "FileIO", InPieces)
    after = read_bundle(tmp_path / "bundle"), read_trace(trace)
    assert after[0].loss == before[0].loss
    assert np.array_equal(after[1].fingerprints, before[1].fingerprints)
