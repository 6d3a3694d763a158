"""The main job end to end: `palm compare` as a user runs it, in processes of their own."""

import json
import os
import subprocess
import sys

import pytest
from cases import python_path

import palm
from palm.spec.taps import tap_names

SMALL = ["--preset", "tiny", "--length", "24", "--batch", "1"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "palm", "compare", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.whole
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_compare_agrees_and_writes_its_reports(dtype, tmp_path):
    done = run(*SMALL, "--dtype", dtype, "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AGREE" in done.stdout
    assert "\x1b" not in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert f"AGREE  {report['verdict']}" in done.stdout.splitlines()  # a pipe gets it in one line
    assert report["agree"]
    assert report["weights_identical"]
    assert len(report["findings"]) == len(tap_names(3)) + 1 + 3 * 7 + 2
    assert "<html" in (tmp_path / "report.html").read_text()


def test_compare_differs_with_status_1_and_names_the_tap(tmp_path):
    # A fault in one wing's code, put there before palm compare starts.
    (tmp_path / "sitecustomize.py").write_text(
        "import palm.jax_impl.feedforward as wing\n"
        "wing.swiglu = lambda gate, up: wing.jax.nn.silu(up) * gate\n"
    )
    small = (*SMALL, "--depth", "1", "--out", str(tmp_path / "out"))
    done = run(*small, PYTHONPATH=python_path(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "torch and jax differ, first at blocks.0.feedforward: " in done.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["first_divergence"] == "blocks.0.feedforward"


@pytest.mark.whole
def test_compare_takes_a_checkpoint_and_any_text(tmp_path):
    path = palm.save(palm.build(palm.preset("tiny"), backend="jax", seed=4), tmp_path / "checkpoint")
    text = tmp_path / "text"
    text.write_bytes(bytes(range(256)) * 4)
    arguments = [
        "--checkpoint",
        str(path),
        "--data",
        str(text),
        "--length",
        "16",
        "--out",
        str(tmp_path / "out"),
    ]
    done = run(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["sides"][0]["config"]["positions"] == "rotary"


def test_a_side_that_fails_is_named_with_its_own_words(tmp_path):
    done = run(*SMALL, "--device", "cuda:7", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "device must be available" in done.stderr
    assert "Traceback" not in done.stderr
