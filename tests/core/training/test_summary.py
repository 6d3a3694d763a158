"""What there is to know of a run without loading it."""

import shutil
from pathlib import Path

import pytest
from cases import ROOT

from palm import RunError, Trained
from palm.training.summary import summarise

WRITTEN = ROOT / "tests" / "fixtures" / "v0_1_0"


def test_a_prompt_shows_where_a_run_ended(tmp_path):
    log = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.25}]
    shown = repr(Trained(object(), log, tmp_path, interrupted=False, tokenizer=None))
    assert shown == f"Trained(step=2, loss=4.25, path={str(tmp_path)!r}, interrupted=False)"
    shown = repr(Trained(object(), [], None, interrupted=True, tokenizer=None))
    assert shown == "Trained(step=0, path=None, interrupted=True)"


def test_a_run_tells_its_model_recipe_steps_and_losses():
    found = summarise(WRITTEN / "run-jax-tokenizer")
    assert (found.backend, found.attention, found.device) == ("jax", "auto", None)
    assert (found.config.num_tokens, found.config.depth) == (300, 1)
    assert (found.recipe.optimizer, found.recipe.steps, found.step) == ("adafactor", 4, 4)
    assert found.tokens == 4 * 2 * 16
    assert (found.first["step"], found.last["step"]) == (1, 4)
    assert found.tokenizer == "tokenizer.json"
    assert Path(found.data).name == "text.txt"
    assert found.checkpoints == [4]
    assert found.best == 4
    assert list(found.val_losses) == [2, 4]
    assert found.val_losses[4] == found.last["val_loss"]


def test_a_run_on_bytes_says_so():
    assert summarise(WRITTEN / "run-torch").tokenizer == "bytes"


def test_a_run_that_has_not_begun_has_no_losses(tmp_path):
    shutil.copytree(WRITTEN / "run-torch", tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    for path in (tmp_path / "run").glob("step-*"):
        shutil.rmtree(path)
    found = summarise(tmp_path / "run")
    assert (found.step, found.tokens, found.first, found.last) == (0, 0, None, None)
    assert (found.val_losses, found.checkpoints, found.best) == ({}, [], None)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="run must be a folder that palm train wrote"):
        summarise(tmp_path)


def test_a_line_of_the_log_that_does_not_count_tokens_is_no_error(tmp_path):
    shutil.copytree(WRITTEN / "run-torch", tmp_path / "run")
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text(log.read_text().replace('"tokens"', '"words"'))
    assert summarise(tmp_path / "run").tokens == 0
    assert summarise(WRITTEN / "run-torch").tokens > 0
