"""The runs below a folder, the settings in which they differ, and the lines that are drawn of them."""

import os

import numpy as np
import pytest
from run_lists import make_run

from palm import RunError
from palm.training.curves import MOST_POINTS, covered, curves
from palm.training.runs import differing, list_runs, read_run, start_in_words, table


@pytest.fixture
def folder(tmp_path):
    """Three runs at two depths, and two that are damaged."""
    make_run(tmp_path / "a" / "seed0", [4.0, 3.0, 2.0], learning_rate=0.01, seed=0)
    make_run(tmp_path / "a" / "seed1", [5.0, 3.5, 2.5, 2.25], learning_rate=0.01, seed=1)
    make_run(tmp_path / "z", [], learning_rate=0.02)
    damaged = make_run(tmp_path / "b", [1.0])
    (damaged.path / "run.json").write_text("{}")
    make_run(tmp_path / "c", [1.0])
    (tmp_path / "c" / "run.json").unlink()
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_runs_are_listed_by_name_with_steps_and_losses(folder):
    found = list_runs(folder)
    assert [run.name for run in found.runs] == [os.path.join("a", "seed0"), os.path.join("a", "seed1"), "z"]
    head, rows = table(found.runs)
    assert head == ["run", "step", "loss", "validation", "lowest", "learning_rate", "seed"]
    assert rows[0][1:] == ["3/10", "2.0000", "4.0000", "4.0000", "0.01", "0"]
    assert rows[1][1:] == ["4/10", "2.2500", "3.2500", "3.2500", "0.01", "1"]
    assert rows[2][1:] == ["0/10", "", "", "", "0.02", "0"]


def test_a_damaged_run_is_listed_with_one_line_why(folder):
    damaged = list_runs(folder).damaged
    assert sorted(damaged) == ["b", "c"]
    assert "must be as it was written; its checksum differs" in damaged["b"]
    assert "run must be a folder that palm train wrote" in damaged["c"]
    assert all(len(why.splitlines()) == 1 for why in damaged.values())


def test_json_has_all_settings_and_says_which_differ(folder):
    told = list_runs(folder).to_dict()
    assert told["differing"] == ["learning_rate", "seed"]
    second = told["runs"][1]
    assert (second["step"], second["steps"], second["tokens"]) == (4, 10, 32)
    assert (second["loss"], second["val_loss"], second["best_val_loss"], second["best_step"]) == (
        2.25,
        3.25,
        3.25,
        4,
    )
    assert second["settings"]["batch"] == 2
    assert told["runs"][2]["best_val_loss"] is None
    assert sorted(told["damaged"]) == ["b", "c"]


def test_the_lowest_validation_loss_need_not_be_the_last_one(tmp_path):
    make_run(tmp_path / "run", [4.0, 1.0, 4.0, 3.0])
    told = list_runs(tmp_path).runs[0].to_dict()
    assert (told["val_loss"], told["best_val_loss"], told["best_step"]) == (4.0, 2.0, 2)


def test_only_what_differs_is_a_column(tmp_path):
    data = {"path": "/x/book.txt", "digest": "a" * 64, "tokenizer": None, "tokenizer_digest": "bytes"}
    runs = [
        read_run(make_run(tmp_path / name, [1.0], settings=more, **recipe).path, name)
        for name, more, recipe in (
            ("a", {"data": data}, {}),
            ("b", {"data": {**data, "path": "/moved/book.txt"}}, {"steps": 20}),
            ("c", {"data": {**data, "digest": "b" * 64}}, {}),
            ("d", {"data": data, "backend": "jax", "device": "cpu"}, {"batch": 4}),
        )
    ]
    assert differing(runs[:1]) == differing(runs[:2]) == []  # the same data elsewhere, and more steps
    assert differing([runs[0], runs[2]]) == ["data"]
    assert differing([runs[0], runs[3]]) == ["batch", "backend", "device"]


def began(path="/x/base", digest="ab"):
    return {"start": {"checkpoint": path, "weights": digest * 32}}


def test_runs_that_began_from_other_weights_differ_and_are_not_seeds_of_one_line(tmp_path):
    for name, settings, seed in (
        ("a", began(), 1),
        ("b", began("/moved/base"), 2),
        ("c", began(digest="cd"), 3),
        ("d", {}, 4),
        ("e", began(None), 5),
    ):
        make_run(tmp_path / name, [1.0], settings=settings, seed=seed)
    runs = {run.name: run for run in list_runs(tmp_path).runs}
    assert differing([runs["a"], runs["b"]]) == ["seed"]
    assert differing([runs["a"], runs["c"]]) == ["seed", "start"]
    assert [row[-1] for row in table([*runs.values()])[1]] == [
        "base abababab",
        "base abababab",
        "base cdcdcdcd",
        "",
        "arrays abababab",
    ]
    assert [len(curve.runs) for curve in drawn(tmp_path).values()] == [2, 1, 1, 1]


def test_the_checkpoint_of_a_run_is_named_with_its_run():
    [told] = began("/x/runs/base/step-00000100").values()
    assert start_in_words(told) == "base/step-00000100 abababab"


def test_a_line_that_later_ones_would_hide_is_known(tmp_path):
    for name, losses, batch in (
        ("a", [4.0, 3.0, 2.0], 1),
        ("b", [4.0, 3.0, 2.0], 2),
        ("c", [4.0, 3.5, 1.0], 3),
        ("d", [4.0, 3.00001, 2.0], 4),
    ):
        make_run(tmp_path / name, losses, batch=batch)
    assert covered([*drawn(tmp_path).values()]) == [2, 1, 0, 0]
    assert covered([]) == []


def test_links_are_not_followed_and_a_run_is_a_whole(tmp_path):
    make_run(tmp_path / "runs" / "a", [1.0])
    make_run(tmp_path / "runs" / "a" / "inner", [1.0])
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs", target_is_directory=True)
    assert [run.name for run in list_runs(tmp_path / "runs").runs] == ["a"]
    assert [run.name for run in list_runs(tmp_path / "runs" / "a").runs] == ["a"]


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(RunError, match="folder must be a folder with runs in it"):
        list_runs(tmp_path / "gone")


def drawn(folder, axis="step"):
    return {curve.label: curve for curve in curves(list_runs(folder).runs, axis)}


def test_runs_that_differ_in_the_seed_alone_are_one_line(folder):
    found = drawn(folder)
    assert list(found) == [os.path.join("a", "seed") + " (2 seeds)", "z"]
    line = found[os.path.join("a", "seed") + " (2 seeds)"]
    # Up to the end of the shorter one.
    assert line.training.x.tolist() == [1, 2, 3]
    assert line.training.mean.tolist() == [4.5, 3.25, 2.25]
    assert line.training.low.tolist() == [4, 3, 2]
    assert line.training.high.tolist() == [5, 3.5, 2.5]
    assert (line.validation.x.tolist(), line.validation.mean.tolist()) == ([2], [4.25])
    assert len(found["z"].training.x) == 0


def test_runs_that_differ_otherwise_are_not(folder):
    make_run(folder / "a" / "seed2", [4.0, 3.0], learning_rate=0.01, seed=2, batch=4)
    assert len(drawn(folder)) == 3


def test_a_line_may_be_drawn_over_tokens(folder):
    line = next(iter(drawn(folder, "tokens").values()))
    assert line.training.x.tolist() == [8, 16, 24]


def test_a_long_line_is_drawn_with_fewer_points_and_keeps_its_ends(tmp_path):
    make_run(tmp_path / "run", np.linspace(9, 1, 3 * MOST_POINTS).tolist(), steps=3 * MOST_POINTS)
    points = drawn(tmp_path)["run"].training
    assert len(points.x) == MOST_POINTS
    assert (points.x[0], points.x[-1]) == (1, 3 * MOST_POINTS)
    assert (np.diff(points.mean) < 0).all()


def test_a_spike_is_forgotten_when_it_is_past(tmp_path):
    losses = [2.0] * 20 + [1e17] + [2.0] * 79
    make_run(tmp_path / "run", losses, steps=100)
    means = drawn(tmp_path)["run"].training.mean
    assert set(means[:20]) == set(means[25:]) == {2.0}
    assert min(means[20:25]) > 1e16


@pytest.mark.filterwarnings("error")
def test_losses_of_any_size_can_be_drawn(tmp_path):
    for seed in range(2):
        make_run(tmp_path / f"run-{seed}", [1e308, -1.7e308, 1.5e308, 1e-308] * 10, seed=seed, steps=40)
    [line] = drawn(tmp_path).values()
    assert np.isfinite([line.training.mean, line.training.low, line.training.high]).all()
    assert max(len(cell) for row in table(line.runs)[1] for cell in row) < 12


def test_runs_without_a_loss_are_not_drawn(tmp_path):
    make_run(tmp_path / "run", [])
    with pytest.raises(RunError, match="runs must have losses by step to be drawn; got 1 runs without any"):
        drawn(tmp_path)
