"""A run loses no step: whatever ends it, the last one has a checkpoint, from which it goes on bit for bit."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import ask_to_stop
from runs import CONFIG, RECIPE, REWINDING, STEPS, TEXT, WINGS, Trial, end_of, spread, third_batch, train

import palm
from palm import jax_impl, memory, torch_impl
from palm.training import loop, plot
from palm.training.run_folder import PLOT, SAMPLES, Run


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The ends of a run that nothing happened to, in each wing."""
    folder = tmp_path_factory.mktemp("unbroken")
    return {wing: end_of(train(folder / wing, wing).path) for wing in WINGS}


def at(step: int, happens: Any) -> Any:
    """An `on_step` that lets something happen after that step."""

    def on_step(entry: dict[str, Any]) -> None:
        if entry["step"] == step:
            happens()

    return on_step


def raises(error: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    "error", [IndexError("x"), MemoryError(), KeyboardInterrupt(), SystemExit(3)], ids=repr
)
@pytest.mark.parametrize("wing", WINGS)
def test_whatever_is_raised_out_of_a_run_costs_no_step(tmp_path, unbroken, wing, error):
    run = tmp_path / "run"
    with pytest.raises(type(error)):
        train(run, wing, on_step=at(3, raises(error)))
    assert Run(run).checkpoint("last").name == "step-00000003"
    palm.resume(run, data=TEXT)
    assert end_of(run) == unbroken[wing]


@pytest.mark.parametrize("part", ["step", "evaluate"])
@pytest.mark.parametrize("wing", WINGS)
def test_an_error_of_the_framework_costs_no_step(tmp_path, unbroken, monkeypatch, wing, part):
    """The step fails before its update; the evaluation after it."""
    run, calls = tmp_path / "run", []
    inner = {"step": "_step", "evaluate": "_evaluate"}[part]
    owner = torch_impl.Trainer if wing == "torch" else jax_impl.train
    original = getattr(owner, inner)

    def fail(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, inner, fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            train(run, wing, cadence=palm.Cadence(validate_every=1, validate_windows=4))
    last = {"step": 2, "evaluate": 3}[part]
    assert Run(run).checkpoint("last").name == f"step-{last:08d}"
    palm.resume(run, data=TEXT)
    assert end_of(run) == unbroken[wing]


@pytest.mark.parametrize("wing", WINGS)
def test_what_an_error_in_the_update_leaves_is_not_saved(tmp_path, unbroken, monkeypatch, wing):
    """Half of the weights may have changed: it is the state of no step."""
    run = tmp_path / "run"
    calls: list[int] = []
    original = WINGS[wing].Trainer.step

    def fail(self: Any, windows: Any, rates: Any) -> Any:
        outcome = original(self, windows, rates)
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("half an update")
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(WINGS[wing].Trainer, "step", fail)
        with pytest.raises(RuntimeError, match="half an update"):
            train(run, wing, cadence=palm.Cadence(checkpoint_every=1))
    assert Run(run).checkpoint("last").name == "step-00000002"
    palm.resume(run, data=TEXT)
    assert end_of(run) == unbroken[wing]


def test_a_state_whose_buffers_are_gone_is_not_saved():
    trainer = jax_impl.Trainer(palm.build(CONFIG, backend="jax"), RECIPE)
    assert trainer.intact
    trainer._state.model.embedding.weight.delete()
    assert not trainer.intact


IDS = np.frombuffer(TEXT, np.uint8)
CHANGES = {
    "truncated": lambda file: os.truncate(file, 130),
    "other ids": lambda file: np.save(file, (IDS + 1) % 13),
    "ids that are too large": lambda file: np.save(file, np.full_like(IDS, 99)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("wing", WINGS)
def test_ids_that_change_under_a_run_end_it_with_a_checkpoint(tmp_path, wing, change):
    run, file = tmp_path / "run", tmp_path / "ids.npy"
    np.save(file, IDS)
    with pytest.raises(palm.DataError, match="left alone while it is read"):
        train(run, wing, file, on_step=at(2, lambda: CHANGES[change](file)))
    assert Run(run).checkpoint("last").name == "step-00000002"
    with pytest.raises(palm.PalmError):
        palm.resume(run)
    np.save(file, IDS)
    palm.resume(run)
    whole = train(tmp_path / "whole", wing, file)
    assert end_of(run) == end_of(whole.path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_costs_no_step(tmp_path, unbroken, number):
    run = tmp_path / "run"
    assert train(run, on_step=at(2, lambda: ask_to_stop(number))).interrupted
    assert Run(run).checkpoint("last").name == "step-00000002"
    palm.resume(run, data=TEXT)
    assert end_of(run) == unbroken["torch"]


@pytest.mark.parametrize("happens", ["moved", "replaced"])
def test_a_folder_that_is_moved_is_followed_for_a_last_checkpoint(tmp_path, unbroken, happens):
    run, moved = tmp_path / "run", tmp_path / "moved"

    def move() -> None:
        run.rename(moved)
        if happens == "replaced":
            run.mkdir()

    with pytest.raises(palm.RunError, match=f"run must stay where it is.*It is {moved} now"):
        train(run, on_step=at(2, move))
    assert not run.exists() or not list(run.iterdir())
    assert Run(moved).checkpoint("last").name == "step-00000003"
    palm.resume(moved, data=TEXT)
    assert end_of(moved) == unbroken["torch"]


def test_a_folder_that_is_deleted_is_a_run_error_and_is_not_made_again(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(palm.RunError, match=r"run must stay where it is.*Put that one back"):
        train(run, on_step=at(2, lambda: shutil.rmtree(run)))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_deleted_before_it_has_settings_is_a_run_error(tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(Run, "keep_tokenizer", lambda self, file: shutil.rmtree(run))
    with pytest.raises(palm.RunError, match="run must stay where it is"):
        train(run)


@pytest.mark.parametrize("given", ["link", "."])
def test_a_start_that_fails_for_another_reason_tells_that_one(tmp_path, monkeypatch, given):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    monkeypatch.chdir(tmp_path / "empty" if given == "." else tmp_path)
    asks = palm.Cadence(sample_every=5, sample_prompt="é")
    with pytest.raises(palm.TokenError, match="token=195"):
        train(Path(given), cadence=asks)
    assert (tmp_path / "link").is_symlink()
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_checkpoint_under_another_steps_name_is_refused_and_nothing_is_deleted(tmp_path):
    run = tmp_path / "run"
    train(run)
    Run(run).path_of(STEPS).rename(Run(run).path_of(STEPS + 2))
    before = sorted(path.name for path in run.rglob("*"))
    with pytest.raises(
        palm.CheckpointError, match=r"must be called after its step; got step=4.*step-00000004"
    ):
        palm.resume(run, data=TEXT)
    assert sorted(path.name for path in run.rglob("*")) == before


def test_samples_and_a_plot_that_fail_do_not_touch_the_run_and_are_told_once(tmp_path, unbroken, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(loop, "generate", raises(ValueError("no text")))
    monkeypatch.setattr(plot, "plot_run", raises(TypeError("no title")))
    trained = train(run, cadence=palm.Cadence(sample_every=1))
    assert trained.failed == (
        "a sample failed after step 1: no text",
        f"the plot failed after step {STEPS}: no title",
    )
    assert end_of(run) == unbroken["torch"]
    assert not (run / PLOT).exists()
    assert not (run / SAMPLES).exists()
    monkeypatch.undo()
    assert train(tmp_path / "other", cadence=palm.Cadence(sample_every=2)).failed == ()


@pytest.mark.parametrize("name", [b"run \xff", b"\x1b[31m", b"$_$"])
def test_a_folder_of_any_name_has_a_plot(tmp_path, name):
    out = Path(os.fsdecode(os.fsencode(tmp_path / "x")[:-1] + name))
    assert train(out).failed == ()
    assert (out / PLOT).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("wing", WINGS)
def test_a_disk_that_fails_once_is_one_error_or_none_and_the_run_goes_on_bit_for_bit(tmp_path, wing):
    """A sample of all moments; the endurance tests have each."""
    trial = Trial(tmp_path, wing)
    assert sum(trial.fails(call, errno.ENOSPC) for call in spread(trial.calls, 4))


@pytest.mark.parametrize("wing", WINGS)
def test_a_run_that_dies_at_any_change_of_the_disk_goes_on_bit_for_bit(tmp_path, wing):
    trial = Trial(tmp_path, wing)
    assert all(trial.dies(call) for call in spread(trial.calls, 3))


def test_a_rewind_that_dies_at_any_change_of_the_disk_goes_on_bit_for_bit(tmp_path):
    trial = Trial(tmp_path, "torch", REWINDING, third_batch("torch", tmp_path))
    assert end_of(tmp_path / "to see its batches") != trial.end
    assert all(trial.dies(call) for call in spread(trial.calls, 3))


def test_a_run_is_not_resumed_with_what_does_not_fit_into_memory(tmp_path, monkeypatch):
    run = tmp_path / "run"
    train(run, cadence=palm.Cadence(checkpoint_every=2))
    before = (run / "run.json").read_bytes()
    monkeypatch.setattr(loop.Loop, "restore", lambda *_, **__: pytest.fail("it is built"))
    with pytest.raises(palm.ConfigError, match="memory must hold the keys and values"):
        palm.resume(run, data=TEXT, cadence=palm.Cadence(sample_tokens=10**13))
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    for wing in WINGS:
        with pytest.raises(palm.ConfigError, match="memory must hold the training"):
            palm.resume(run, data=TEXT, backend=wing)
    assert (run / "run.json").read_bytes() == before
