"""What version 0.1.0 wrote still loads, and what it computed is still computed, bit for bit."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from cases import ROOT
from filelock import FileLock

import palm
from palm.parity.drift.drift import BUTTERFLY_BAR
from palm.spec.initial import initial_weights

WRITTEN = ROOT / "tests" / "fixtures" / "v0_1_0"
PROGRAM = ROOT / "tests" / "fixtures" / "results.py"
BACKENDS = ("torch", "jax")
# A processor or a library of another make rounds otherwise: a few units of the dtype, through two blocks.
OTHERWISE = {"float64": 1e-12, "float32": 1e-4, "bfloat16": 0.1}


@pytest.fixture(scope="module", params=["torch", pytest.param("jax", marks=pytest.mark.whole)])
def computed(request, tmp_path_factory):
    """A wing's results by the present code and by version 0.1.0, in a process of its own.

    pytest's own processes share them: the first one computes.
    """
    out = tmp_path_factory.getbasetemp().parent / f"results-{request.param}.json"
    env = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_ENABLE_X64")}
    env |= {"OMP_NUM_THREADS": "1"}
    with FileLock(f"{out}.lock"):
        if not (os.environ.get("PYTEST_XDIST_WORKER") and out.exists()):
            subprocess.run([sys.executable, PROGRAM, request.param, out], check=True, env=env)
    before = json.loads((WRITTEN / f"{request.param}.json").read_text("utf-8"))
    return json.loads(out.read_text("utf-8")), before


@pytest.fixture
def on_its_machine(computed):
    """The same; where another machine or library computes, tests of bits are skipped, and say so."""
    here, there = (results["machine"] for results in computed)
    if here != there:
        pytest.skip(f"bits are compared on the machine of the fixture only: {there}; this is {here}")
    return computed


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("architecture", BACKENDS)
def test_logits_gradients_and_taps_have_the_bits_of_version_0_1_0(on_its_machine, architecture, dtype):
    now, before = (results[f"{architecture} architecture, {dtype}"] for results in on_its_machine)
    assert [name for name in before if now[name] != before[name]] == []


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("architecture", BACKENDS)
def test_logits_gradients_and_taps_are_those_of_version_0_1_0_to_rounding(computed, architecture, dtype):
    now, before = (results[f"{architecture} architecture, {dtype}"] for results in computed)
    assert now.keys() == before.keys()
    for name, value in before.items():
        if name != "loss":
            a, b = np.array(now[name]["sample"]), np.array(value["sample"])
            assert np.linalg.norm(a - b) <= OTHERWISE[dtype] * np.linalg.norm(b), name


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_fifty_training_steps_and_their_texts_have_the_bits_of_version_0_1_0(on_its_machine, optimizer):
    now, before = (results[optimizer] for results in on_its_machine)
    assert len(before["losses"]) == 50
    assert [name for name in before if now[name] != before[name]] == []


def excess(optimizer, losses, before):
    """How much further losses are from those of version 0.1.0 than rounding takes them, at most.

    Training amplifies rounding. By how much is known from version 0.1.0 itself, whose two wings differ by it.
    """
    wings = [losses_of(json.loads((WRITTEN / f"{b}.json").read_text("utf-8")), optimizer) for b in BACKENDS]
    apart, control = (np.maximum.accumulate(abs(a - b)) for a, b in ((losses, before), wings))
    return float(np.max(apart / (control + 2.0**-24 * before)))


def losses_of(results, optimizer):
    return np.array([float.fromhex(loss) for loss in results[optimizer]["losses"]])


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_fifty_training_steps_are_those_of_version_0_1_0_to_rounding(computed, optimizer):
    now, before = (losses_of(results, optimizer) for results in computed)
    assert len(before) == 50
    assert excess(optimizer, now, before) <= BUTTERFLY_BAR
    # The negative control: what is off by a hundred thousandth is no rounding.
    assert excess(optimizer, now * (1 + 1e-5), before) > BUTTERFLY_BAR


def test_one_changed_weight_would_be_seen(computed):
    """The negative control: two configs have no digest in common but that of the embedding."""
    _, before = computed
    a, b = (before[f"{name} architecture, float32"] for name in BACKENDS)
    assert [name for name in a if name in b and a[name] == b[name]] == ["tap embed"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_checkpoint_of_version_0_1_0_loads(name, backend):
    model = palm.load(WRITTEN / f"checkpoint-{name}", backend=backend)
    config = palm.PaLMConfig(num_tokens=256, dim=16, depth=2, heads=2, dim_head=8).resolve(name)
    assert palm.config_of(model) == config
    drawn = initial_weights(config, 1, "float32", draw="whole")
    for tensor, array in palm.to_numpy(model).items():
        np.testing.assert_array_equal(array, drawn[tensor])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bfloat16_checkpoint_of_version_0_1_0_loads(backend):
    assert palm.dtype_of(palm.load(WRITTEN / "checkpoint-bfloat16", backend=backend)) == "bfloat16"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", BACKENDS)
def test_a_bundle_of_version_0_1_0_agrees_with_a_live_side(name):
    model = palm.load(WRITTEN / f"checkpoint-{name}", backend=name)
    bundle = WRITTEN / f"bundle-{name}"
    assert palm.compare(bundle, model, checkpoint=WRITTEN / f"checkpoint-{name}").agree


@pytest.mark.sampled(1)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["run-torch", "run-jax-tokenizer"])
def test_a_run_of_version_0_1_0_goes_on(name, backend, tmp_path):
    shutil.copytree(WRITTEN / name, tmp_path / "run")
    trained = palm.resume(tmp_path / "run", backend=backend, steps=6, data=WRITTEN / "text.txt")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text("utf-8").splitlines()]
    assert [row["step"] for row in rows if "loss" in row][-2:] == [5, 6]
    assert palm.config_of(trained.model).dim == 16


@pytest.mark.parametrize("name", ["report", "report-training"])
def test_a_report_of_version_0_1_0_has_the_keys_of_today(name):
    """What reads reports goes on doing so: keys may join, none may leave or change its kind."""
    report = json.loads((WRITTEN / name / "report.json").read_text("utf-8"))
    assert (report["schema"], report["version"], report["outcome"]) == ("palm-compare", 2, "agree")
    assert (WRITTEN / name / "report.html").is_file()
