"""Training compared: both wings are as near as an ulp's butterfly effect lets them, and a fault is found."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from cases import draw_weights, python_path

import palm
from palm.data.windows import open_corpus, standard_library_text
from palm.parity.drift.drift import RUNS, butterfly
from palm.parity.drift.trajectory import record_training
from palm.parity.drift.ulp import moved_by_an_ulp
from palm.parity.run.launch import Source, train_backends, training_steps

CONFIG = palm.PaLMConfig(num_tokens=256, dim=32, depth=2, heads=2, dim_head=16).resolve("torch")
RECIPE = palm.recipe("adamw", steps=12, batch=2, length=24)
# What a port gets wrong most easily, each by little.
FAULTS = {"learning_rate": RECIPE.learning_rate * 1.01, "beta2": 0.98}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train in one wing, from weights that are a control's or not."""
    corpus = open_corpus(standard_library_text())
    weights = draw_weights(CONFIG, dtype="float32")

    def trained(backend, recipe=RECIPE, control=False, reported=lambda step: None):
        start = moved_by_an_ulp(weights, recipe.seed) if control else weights
        model = palm.from_numpy(CONFIG, start, backend=backend)
        return record_training(model, recipe, corpus, tmp_path_factory.mktemp("run"), on_step=reported)

    return trained


@pytest.fixture(scope="module")
def torch_runs(train):
    return train("torch"), train("torch", control=True)


def test_both_wings_drift_apart_no_faster_than_an_ulp_would_drive_them(train, torch_runs):
    torch, control = torch_runs
    found = butterfly(torch, train("jax"), control)
    assert found.agree, found.verdict
    assert found.distance[0] == 0
    assert 1e-8 < found.control_distance[0] < 2.0**-23
    assert found.largest_gap < 1e-5
    assert found.losses["torch"][-1] != found.losses["torch"][0]


@pytest.mark.parametrize("field", FAULTS)
def test_another_recipe_on_one_side_is_more_than_rounding(train, torch_runs, field):
    torch, control = torch_runs
    wrong = dataclasses.replace(RECIPE, **{field: FAULTS[field]})
    found = butterfly(torch, train("jax", wrong), control)
    assert not found.agree
    assert "more than rounding explains" in found.verdict


def test_a_wing_repeats_itself_bit_for_bit_and_reports_each_step(train, torch_runs):
    steps = []
    again = train("torch", reported=steps.append)
    assert np.array_equal(again.weights, torch_runs[0].weights)
    assert np.array_equal(again.losses, torch_runs[0].losses)
    assert steps == [f"step {k}" for k in range(RECIPE.steps + 1)]
    assert len(steps) + 1 == training_steps(RECIPE)


def test_a_recorded_way_is_that_of_palm_train(train, torch_runs):
    whole = dataclasses.replace(RECIPE, validation=0.0)
    weights = draw_weights(CONFIG, dtype="float32")
    trained = palm.train(CONFIG, whole, standard_library_text(), backend="torch", weights=weights)
    assert [entry["loss"] for entry in trained.log] == torch_runs[0].losses[:-1].tolist()
    assert [entry["grad_norm"] for entry in trained.log] == torch_runs[0].grad_norms[:-1].tolist()
    arrays = palm.to_numpy(trained.model)
    assert np.array_equal(np.concatenate([a.ravel() for a in arrays.values()]), torch_runs[0].weights[-1])


@pytest.mark.whole
def test_processes_of_their_own_agree_too_and_report_each_step(tmp_path):
    model = palm.build(CONFIG, backend="jax", seed=4)
    checkpoint = palm.save(model, tmp_path / "checkpoint")
    reported = []
    found = train_backends(
        Source(CONFIG, 0, ()),
        open_corpus(standard_library_text()),
        dataclasses.replace(RECIPE, steps=4),
        checkpoint=str(checkpoint),
        device=None,
        attention="blockwise",
        on_step=lambda run, step: reported.append((run, step)),
    )
    assert found.agree, found.verdict
    assert reported == [(run, step) for run in RUNS for step in ("build", *(f"step {k}" for k in range(5)))]
    assert training_steps(dataclasses.replace(RECIPE, steps=4)) == 6


@pytest.mark.whole
def test_the_command_finds_a_fault_that_only_training_shows(tmp_path):
    # In one wing's code, put there before palm compare starts: a tenth more decay, of every parameter.
    (tmp_path / "sitecustomize.py").write_text(
        "import palm.jax_impl.optimizer as wing\nwing._decayed = lambda p, rates: 1.1 * rates.decay * p\n"
    )
    options = ["--preset", "tiny", "--train", "4", "--length", "16", "--batch", "1", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "palm", "compare", *options]
    environment = {**os.environ, "PYTHONPATH": python_path(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "AGREE  torch and jax agree: every difference is rounding" in done.stdout
    assert "DIFFER  over 4 training steps" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert f"DIFFER  {report['training']['verdict']}" in done.stdout.splitlines()
    assert not report["agree"]
    assert report["first_divergence"] is None
    assert (report["training"]["steps"], report["run"]["recipe"]) == (4, "adamw")
    assert report["verdict"].endswith(report["training"]["verdict"])
    assert "Training, 4 steps" in (tmp_path / "report.html").read_text()
