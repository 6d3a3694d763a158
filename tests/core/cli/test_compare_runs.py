"""`palm compare-runs`: two groups of runs, paired by seed or not."""

import json

import pytest
from run_lists import make_run

from palm.cli.main import main

NOISE = (0.02, -0.01, 0.03, -0.02)


def group(folder, loss, seeds=range(4), **settings):
    for seed in seeds:
        make_run(folder / f"seed-{seed}", [5.0, loss + NOISE[seed % 4]], seed=seed, **settings)
    return folder


def palm(capsys, *arguments, status=0):
    assert main([str(argument) for argument in arguments]) == status
    return capsys.readouterr()


def test_a_gap_of_every_seed_is_more_than_noise(tmp_path, capsys):
    a, b = group(tmp_path / "a", 1.0), group(tmp_path / "b", 1.1, learning_rate=0.5)
    printed = palm(capsys, "compare-runs", a, "--against", b, status=1).out
    assert "compared: 4 pairs of one seed" in printed
    assert "the runs differ in: learning_rate" in printed
    assert "The loss of A is 0.1 nats below that of B, more than noise" in printed
    assert " ".join(printed.splitlines()[1].split()) == "A seed-0 0 2/10 2.0200"


def test_equal_groups_are_noise_and_runs_can_be_named_one_by_one(tmp_path, capsys):
    a, b = group(tmp_path / "a", 1.0), group(tmp_path / "b", 1.0, seeds=[4, 5, 6])
    told = json.loads(palm(capsys, "compare-runs", a, "--against", *b.iterdir(), "--json").out)
    assert told["gap"]["noise"]
    assert not told["gap"]["paired"]
    assert told["gap"]["samples"] == [4, 3]
    assert [run["seed"] for run in told["b"]] == [4, 5, 6]


def test_unequal_seeds_are_not_paired(tmp_path, capsys):
    a, b = group(tmp_path / "a", 1.0), group(tmp_path / "b", 1.0, seeds=[0, 1, 2])
    assert "4 runs and 3 runs, not paired" in palm(capsys, "compare-runs", a, "--against", b).out


@pytest.mark.parametrize(
    ("b", "why"),
    [
        ({"seeds": [0]}, "a group must have at least two runs"),
        ({"every": 5}, "a run must have a finite validation loss"),
        ({"validation": 0.5}, "these differ in validation"),
    ],
)
def test_what_cannot_be_compared_is_refused(b, why, tmp_path, capsys):
    a, b = group(tmp_path / "a", 1.0), group(tmp_path / "b", 1.0, **b)
    assert why in palm(capsys, "compare-runs", a, "--against", b, status=2).err


def test_a_run_in_both_groups_is_refused(tmp_path, capsys):
    a = group(tmp_path / "a", 1.0)
    assert "a run must be in one group" in palm(capsys, "compare-runs", a, "--against", a, status=2).err


def test_a_gap_that_sums_cannot_tell_is_rounding_and_one_above_is_not(tmp_path, capsys):
    near = group(tmp_path / "a", 1.0), group(tmp_path / "b", 1.0 + 1e-7)
    assert "which is rounding" in palm(capsys, "compare-runs", near[0], "--against", near[1]).out
    far = group(tmp_path / "c", 1.0 + 1e-5)
    assert "more than noise" in palm(capsys, "compare-runs", near[0], "--against", far, status=1).out


def test_a_seed_that_counts_twice_is_refused(tmp_path, capsys):
    a, b = group(tmp_path / "a", 1.0, seeds=[0]), group(tmp_path / "b", 1.0, seeds=[0])
    refused = palm(capsys, "compare-runs", a, b, "--against", group(tmp_path / "c", 1.0), status=2).err
    assert "the runs of a group must be of different seeds, or one counts twice; got seed=0" in refused


def test_two_runs_of_one_seed_are_compared_step_by_step(tmp_path, capsys):
    losses = [5.0, 4.0, 3.0]
    make_run(tmp_path / "a", losses)
    make_run(tmp_path / "b", [5.0, 4.0 + 3e-7, 3.0], settings={"backend": "torch"})
    make_run(tmp_path / "c", [5.0, 4.0 + 3e-7, 3.0 + 1e-4])
    make_run(tmp_path / "d", losses, seed=1)
    a = tmp_path / "a"
    same = palm(capsys, "compare-runs", a, "--against", tmp_path / "b").out
    told = " ".join(same.split())
    assert "Of 4 losses at the same steps none is further apart than 3e-07 nats (step 2)." in told
    assert "The losses are those of one run." in told
    told = json.loads(palm(capsys, "compare-runs", a, "--against", tmp_path / "c", "--json", status=3).out)
    assert (told["step"], told["grown"], told["same"]) == (3, 3, False)
    assert (
        "these differ in seed" in palm(capsys, "compare-runs", a, "--against", tmp_path / "d", status=2).err
    )
    assert "twice" in palm(capsys, "compare-runs", a, "--against", a, status=2).err


def test_two_runs_that_cannot_be_one_are_not_called_one(tmp_path, capsys):
    a, b = tmp_path / "a", tmp_path / "b"
    make_run(a, [5.0, 4.0])
    make_run(b, [5.0, 4.0], learning_rate=0.5)
    assert "these differ in learning_rate" in palm(capsys, "compare-runs", a, "--against", b, status=2).err
    make_run(tmp_path / "short", [5.0])  # a step's loss is of the weights before it: any two begin alike
    refused = palm(capsys, "compare-runs", a, "--against", tmp_path / "short", status=2).err
    assert "at least two steps in common" in refused


def test_what_sums_tell_apart_is_of_the_coarser_run_and_of_the_step(tmp_path, capsys):
    make_run(tmp_path / "narrow", [5.0, 1.0 + 3e-7], precision="float32")
    make_run(tmp_path / "wide", [5.0, 1.0], precision="float64")
    make_run(tmp_path / "other", [5.0, 1.0 + 4e-6])
    for pair in (("narrow", "wide"), ("wide", "narrow")):
        a, b = (tmp_path / name for name in pair)
        assert "those of one run" in " ".join(palm(capsys, "compare-runs", a, "--against", b).out.split())
    both = "compare-runs", tmp_path / "narrow", "--against"
    told = json.loads(palm(capsys, *both, tmp_path / "other", "--json", status=3).out)
    assert told["resolution"] < told["largest"] < 5e-6
