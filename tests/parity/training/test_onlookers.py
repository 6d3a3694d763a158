"""What follows a run in either wing does not touch it; and a profile shows what the run computes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from runs import STEPS, TEXT, WINGS, end_of, train

import palm


@pytest.fixture(scope="module", params=WINGS)
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """A wing, and where its run ends if nothing follows it."""
    run = tmp_path_factory.mktemp("alone") / "run"
    train(run, request.param)
    return request.param, end_of(run)


class Unruly:
    """Empties each line, and then fails."""

    def open(self, run: Any) -> None:
        assert set(run.settings) >= {"config", "recipe", "backend"}
        assert run.name == "run"

    def log(self, entry: dict[str, float]) -> None:
        is_last = entry["step"] == STEPS - 1
        entry.clear()
        if is_last:
            raise ValueError("enough")

    def close(self) -> None:
        raise AssertionError("nobody hears this")


def test_loggers_and_profiles_that_fail_leave_every_bit_of_the_run(alone, tmp_path):
    wing, end = alone
    run = tmp_path / "run"

    def in_the_way(entry: dict[str, float]) -> None:
        (run / "profile").touch()

    trained = train(run, wing, loggers=[Unruly(), in_the_way, dict.pop], profile="2-3")
    assert end_of(run) == end
    assert [entry["step"] for entry in trained.log] == list(range(1, STEPS + 1))
    assert len(trained.failed) == 3
    assert f"Unruly failed after step {STEPS - 1}: enough" in trained.failed
    assert any(told.startswith("pop failed after step 1: ") for told in trained.failed)
    assert any(told.startswith("the profile failed after step ") for told in trained.failed)


def names_in(trace: Path) -> set[str]:
    """The names of the events in a trace that Perfetto and Chrome open."""
    found = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return {event["name"] for event in found if event.get("ph") == "X"}


def test_a_profile_has_what_the_steps_compute_and_leaves_every_bit_of_the_run(alone, tmp_path):
    wing, end = alone
    trained = train(tmp_path / "run", wing, profile=1)
    assert trained.failed == ()
    assert end_of(tmp_path / "run") == end
    [folder] = (tmp_path / "run" / "profile").iterdir()
    assert folder.name == "step-00000003"
    [trace] = folder.rglob("*trace.json.gz")
    expected = {
        "torch": {"aten::embedding", "aten::add"},
        "jax": {"PjitFunction(_step)", "ThunkExecutor::Execute"},
    }[wing]
    assert expected <= names_in(trace)
    assert len(list(folder.rglob("*.xplane.pb"))) == (wing == "jax")


def test_a_run_that_goes_on_has_its_own_loggers(alone, tmp_path):
    wing, _ = alone
    first, second = list[float](), list[float]()
    train(tmp_path / "run", wing, loggers=[lambda entry: first.append(entry["step"])])
    follow = [lambda entry: second.append(entry["step"])]
    palm.resume(tmp_path / "run", data=TEXT, steps=STEPS + 2, loggers=follow)
    assert (first, second) == ([1, 2, 3, 4], [5, 6])


def test_what_cannot_follow_a_run_is_refused_before_there_is_a_folder(tmp_path):
    for options in ({"loggers": ["tensorbored"]}, {"profile": "5-4"}):
        with pytest.raises(palm.ConfigError):
            train(tmp_path / "run", **options)
    assert list(tmp_path.iterdir()) == []
