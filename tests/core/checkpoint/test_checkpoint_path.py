"""Which checkpoint a path means: its own directory, or the newest or the best one of a run."""

import json
import shutil

import numpy as np
import pytest
from cases import ROOT, assert_explains, draw_weights, small

from palm import CheckpointError
from palm.checkpoint.checkpoint import load_arrays, save_arrays
from palm.checkpoint.locate import checkpoint_path
from palm.checkpoint.manifest import MANIFEST, RUN_SETTINGS
from palm.checkpoint.progress import MOMENTS, Progress, load_progress

CONFIG = small()


@pytest.fixture
def run(tmp_path):
    """A run of three checkpoints; of the last one no validation loss is known."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / RUN_SETTINGS).write_text("{}")
    for step, loss in ((10, 1.5), (20, 2.5), (30, None)):
        save(folder, step, loss)
    return folder


def save(folder, step, loss):
    weights = draw_weights(CONFIG, seed=step)
    moments = {f"{moment}.{name}": np.abs(array) for moment in MOMENTS for name, array in weights.items()}
    progress = Progress({"step": step, "row": 0, "rewinds": 0, "spike": 0, "val_loss": loss}, moments)
    return save_arrays(CONFIG, weights, folder / f"step-{step:08d}", progress=progress)


def test_a_run_is_its_newest_checkpoint(run):
    assert checkpoint_path(run) == checkpoint_path(run / "last") == run / "step-00000030"
    assert load_progress(run)[2].fields["step"] == 30
    assert load_progress(str(run / "last"))[2].fields["step"] == 30


def test_the_best_checkpoint_has_the_lowest_validation_loss_of_those_that_exist(run):
    assert checkpoint_path(run / "best") == run / "step-00000010"
    assert load_progress(run / "best")[2].fields["step"] == 10
    shutil.rmtree(run / "step-00000010")
    assert load_progress(run / "best")[2].fields["step"] == 20


def test_the_weights_are_those_of_the_checkpoint_that_is_meant(run):
    for path, seed in ((run, 30), (run / "best", 10), (run / "step-00000020", 20)):
        _, weights = load_arrays(path)
        np.testing.assert_array_equal(weights["embedding"], draw_weights(CONFIG, seed=seed)["embedding"])


def test_a_checkpoint_is_itself_and_so_is_what_is_none(run, tmp_path):
    assert checkpoint_path(run / "step-00000020") == run / "step-00000020"
    assert checkpoint_path(tmp_path / "none") == tmp_path / "none"
    assert checkpoint_path(tmp_path / "best") == tmp_path / "best"  # there is no run


def test_a_checkpoint_that_is_called_best_is_meant_itself(run):
    shutil.copytree(run / "step-00000020", run / "best")
    assert checkpoint_path(run / "best") == run / "best"
    assert load_progress(run / "best")[2].fields["step"] == 20


def test_a_checkpoint_that_lies_among_a_runs_settings_is_meant_itself(run):
    shutil.copytree(run / "step-00000010", run, dirs_exist_ok=True)
    assert (run / MANIFEST).exists()
    assert checkpoint_path(run) == run


@pytest.mark.parametrize("which", ["", "best", "last"])
def test_a_run_without_checkpoints_is_refused(tmp_path, which):
    (tmp_path / RUN_SETTINGS).write_text("{}")
    with pytest.raises(CheckpointError) as raised:
        load_arrays(tmp_path / which)
    assert_explains(raised, "path must have a checkpoint", f"path={tmp_path / which}", "Train first")


def test_a_run_without_a_validation_loss_has_no_best_checkpoint(run):
    for step in (10, 20):
        shutil.rmtree(run / f"step-{step:08d}")
    with pytest.raises(CheckpointError) as raised:
        load_arrays(run / "best")
    assert_explains(raised, "a validation loss to choose the best by", f"path={run / 'best'}", f"Use {run}")


def test_runs_of_version_0_1_0_are_taken(tmp_path):
    written = ROOT / "tests" / "fixtures" / "v0_1_0"
    for name in ("run-torch", "run-jax-tokenizer"):
        newest = checkpoint_path(written / name)
        losses = [json.loads(line) for line in (written / name / "metrics.jsonl").read_text().splitlines()]
        assert newest.name == f"step-{losses[-1]['step']:08d}"
        config, _ = load_arrays(written / name)
        assert config == load_arrays(newest)[0]
