"""Every operation that changes files is killed, or meets a failing disk, at each of its system calls."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest
from operations import OPERATIONS, fresh, survives_kills
from runs import LONG, LONGER, REWINDING, WINGS, Trial, busy_run, third_batch, train
from system_calls import REFUSED, STRACE, Call, changing_calls, reading_calls, settled, tampered

pytestmark = pytest.mark.skipif(STRACE is None, reason="there is no strace, which tampers with the calls")
WRITE_ERRORS = ("ENOSPC", "EIO", "EROFS", "EDQUOT")
# A run in JAX compiles its step in each process: of its calls, one in so many is tried.
STRIDE = {"torch": 1, "jax": 8}
KILL = "signal=KILL"
INTERRUPTIBLE = ("openat", "read", "pread64", "write", "fsync", "ftruncate")


def new(folder: Path) -> Path:
    """A name that nothing in the folder has."""
    return folder / f"run-{len([*folder.iterdir()])}"


def end_early(run: Path, wing: str, text: Path) -> None:
    """A long run that is interrupted after twenty steps."""

    def on_step(entry: dict[str, float]) -> None:
        if entry["step"] == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, wing, text, LONG, cadence=LONGER, on_step=on_step)


@pytest.mark.parametrize(
    ("name", "wing"), [(name, wing) for name, operation in OPERATIONS.items() for wing in operation.wings]
)
def test_an_operation_that_the_system_kills_leaves_the_old_or_the_new_and_the_next_one_clears_up(
    tmp_path, name, wing
):
    count = survives_kills(name, wing, tmp_path)
    print(f"\n{wing}, {name}: killed at each of {count} calls")


@pytest.mark.parametrize("kind", ["steady", "rewinding"])
@pytest.mark.parametrize("wing", WINGS)
def test_a_run_that_the_system_kills_ends_bit_for_bit_as_the_unbroken_one(tmp_path, wing, kind):
    bad = third_batch(wing, tmp_path) if kind == "rewinding" else None
    trial = Trial(tmp_path, wing, **({"recipe": REWINDING, "bad": bad} if bad else {}))
    folder = tmp_path / "runs"
    folder.mkdir()
    calls = settled(lambda: changing_calls(busy_run, new(folder), *trial.given, folder=folder))
    ended = Counter()
    for call in calls[:: STRIDE[wing]]:
        run = new(folder)
        ended[tampered(call, KILL, busy_run, run, *trial.given)] += 1
        trial.ends_as_if_nothing_had_happened(run)
    print(f"\n{wing}, {kind}: killed at {ended[-signal.SIGKILL]} of {len(calls)} calls")
    assert {*ended} == {-signal.SIGKILL}


@pytest.mark.parametrize("wing", WINGS)
def test_a_disk_that_fails_a_run_of_thirty_steps_once_costs_it_nothing(tmp_path, wing):
    """The errors take turns."""
    trial, folder = Trial(tmp_path, wing, LONG), tmp_path / "runs"
    folder.mkdir()
    calls = settled(lambda: changing_calls(busy_run, new(folder), *trial.given, folder=folder))
    ended = Counter()
    for call, error in zip(calls[:: STRIDE[wing]], cycle(WRITE_ERRORS), strict=False):
        run = new(folder)
        ended[tampered(call, f"error={error}", busy_run, run, *trial.given)] += 1
        trial.ends_as_if_nothing_had_happened(run)
    print(f"\n{wing}: of {ended.total()} failures of {len(calls)} calls, {ended[REFUSED]} ended the run")
    assert {*ended} == {0, REFUSED}


@pytest.mark.parametrize("error", ["EIO", "EINTR"])
@pytest.mark.parametrize("wing", WINGS)
def test_a_call_that_fails_while_a_run_is_resumed_costs_nothing(tmp_path, wing, error):
    """Reading fails with EIO. After EINTR, which a signal may cause, Python makes the call once more.

    It does not where it opens a folder: that ends the run with an error.
    """
    trial, before, folder = Trial(tmp_path, wing, LONG), tmp_path / "before", tmp_path / "runs"
    before.mkdir()
    end_early(before / "run", wing, trial.text)

    def counted(kind: Callable[..., list[Call]]) -> list[Call]:
        return kind(busy_run, fresh(before, folder) / "run", *trial.given, folder=folder)

    calls = settled(lambda: counted(reading_calls))
    if error == "EINTR":
        calls = sorted({call for call in (*calls, *counted(changing_calls)) if call.name in INTERRUPTIBLE})
    ended = Counter()
    for call in calls[:: STRIDE[wing]]:
        run = fresh(before, folder) / "run"
        ended[tampered(call, f"error={error}", busy_run, run, *trial.given)] += 1
        trial.ends_as_if_nothing_had_happened(run)
    print(f"\n{wing}: {error} at {ended.total()} of {len(calls)} calls, {ended[REFUSED]} ended the run")
    assert {*ended} <= {0, REFUSED}
    assert (ended[REFUSED] > ended.total() / 4) is (error == "EIO")
