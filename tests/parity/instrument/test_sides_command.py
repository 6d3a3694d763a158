"""`palm compare A B` and `palm record` as a user runs them: any two sides, live or recorded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import python_path

import palm

SMALL = ["--preset", "tiny", "--length", "24", "--batch", "1"]
FAULTY_JAX = (
    "import palm.jax_impl.feedforward as wing\nwing.swiglu = lambda gate, up: wing.jax.nn.silu(up) * gate\n"
)


FAULTY_DECODER = """
import palm.jax_impl.generate as wing
right = wing.heads_rotation
wing.heads_rotation = lambda turns, positions, heads: right(turns, positions + 1, heads)
"""


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "palm", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def report_of(folder: Path, done: subprocess.CompletedProcess[str], status: int = 0) -> dict:
    assert done.returncode == status, done.stdout + done.stderr
    report = json.loads((folder / "report.json").read_text())
    verdict = report["verdict"].removeprefix(f"{report['outcome']} ")
    assert any(line.endswith(f"  {verdict}") for line in done.stdout.splitlines())  # in one line
    return report


@pytest.mark.parametrize(("side", "other"), [("torch", "jax"), ("jax", "torch")])
def test_sequences_that_a_mesh_cannot_share_out_are_refused_alike(tmp_path, side, other):
    size = ["--preset", "tiny", "--length", "8", "--batch", "3", "--out", tmp_path]
    refused = run("compare", f"{side}@mesh=data:2", other, *size)
    assert refused.returncode == 2
    told = "batch must be a multiple of accumulate · pod · data = 2 on the mesh data=2; got batch=3."
    assert refused.stderr.startswith(f"palm: {told}")
    assert not (tmp_path / "report.json").exists()


@pytest.mark.whole
@pytest.mark.parametrize("side", ["torch@mesh=data:2", "jax@mesh=data:2"])
def test_sequences_that_a_mesh_shares_out_agree(tmp_path, side):
    size = ["--preset", "tiny", "--length", "8", "--batch", "2", "--out", tmp_path]
    report = report_of(tmp_path, run("compare", side, side.partition("@")[0], *size))
    assert report["outcome"] == "agree"


@pytest.mark.whole
@pytest.mark.parametrize(
    ("a", "b", "labels"),
    [
        ("torch", "torch@dtype=bfloat16", ["torch float32", "torch bfloat16"]),
        (
            "torch@attention=textbook,remat=on",
            "jax@compile=off",
            ["torch textbook remat on", "jax compile off"],
        ),
        ("jax@matmul=bfloat16", "jax", ["jax matmul bfloat16", "jax"]),
    ],
)
def test_any_two_live_sides_of_one_model_agree(tmp_path, a, b, labels):
    report = report_of(tmp_path, run("compare", a, b, *SMALL, "--out", tmp_path))
    assert report["outcome"] == "agree"
    assert report["weights_identical"]
    assert [side["label"] for side in report["sides"]] == labels
    flags = [(s["environment"]["attention"], s["environment"]["compile"]) for s in report["sides"]]
    assert ("textbook" in a, "compile=off" in b) == (flags[0][0] == "textbook", flags[1][1] == "off")


@pytest.mark.whole
@pytest.mark.parametrize(
    ("a", "b", "labels"),
    [
        ("torch", "torch@decode=on", ["torch decode on", "torch"]),
        ("torch@padding=left,rows=alone", "jax", ["torch rows alone padding left", "jax"]),
        ("torch@dtype=float64", "jax@decode=on,dtype=float64", ["jax decode on", "torch"]),
        (
            "jax@dtype=bfloat16",
            "jax@decode=on,rows=alone",
            ["jax float32 decode on rows alone", "jax bfloat16"],
        ),
    ],
)
def test_a_model_agrees_with_itself_as_it_is_served(tmp_path, a, b, labels):
    report = report_of(tmp_path, run("compare", a, b, *SMALL, "--out", tmp_path))
    assert (report["schema"], report["outcome"]) == ("palm-compare-foreign", "agree")
    assert ([report["label"], report["other"]], report["one_model"]) == (labels, True)
    assert report["verdict"].endswith("Only logits are compared.")


@pytest.mark.whole
@pytest.mark.parametrize(("a", "b"), [("torch:{}", "torch@decode=on"), ("jax@decode=on", "torch:{}")])
def test_both_sides_have_the_weights_of_the_one_checkpoint(tmp_path, a, b):
    model = palm.build(palm.preset("tiny"), backend="torch", seed=5)
    palm.save(model, tmp_path / "weights")
    sides = [side.format(tmp_path / "weights") for side in (a, b)]
    report = report_of(tmp_path, run("compare", *sides, *SMALL[2:], "--out", tmp_path))
    assert report["outcome"] == "agree"
    assert report["run"]["model"] == str(tmp_path / "weights")
    palm.save(model, tmp_path / "others")
    refused = run(
        "compare", f"torch:{tmp_path}/weights", f"torch:{tmp_path}/others@decode=on", "--out", tmp_path
    )
    assert refused.returncode == 2
    assert "checkpoint must be the same on both sides" in refused.stderr


@pytest.mark.whole
def test_a_decoder_with_a_fault_differs_from_its_first_position_on(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(FAULTY_DECODER)
    faulty = {"PYTHONPATH": python_path(tmp_path)}
    arguments = [*SMALL, "--batch", "3", "--positions", "rotary", "--out", tmp_path]
    done = run("compare", "jax@decode=on", "torch", *arguments, **faulty)
    report = report_of(tmp_path, done, status=1)
    assert report["first_position"] == [0, 1]
    assert "They are apart from position 1 of sequence 0 on. Only logits are compared." in done.stdout
    assert run("compare", "torch@decode=on", "jax", *arguments, **faulty).returncode == 0


@pytest.mark.whole
def test_repeating_tells_how_sure_it_is(tmp_path):
    report = report_of(tmp_path, run("compare", *SMALL, "--repeat", "3", "--out", tmp_path))
    assert report["repeats"]["seeds"] == [0, 1, 2]
    assert report["repeats"]["outcomes"] == ["agree"] * 3
    low, middle, high = report["repeats"]["intervals"]["logits"]
    assert 0 < low < middle < high, "other weights and other text each time"


@pytest.mark.whole
def test_two_checkpoints_differ_in_their_weights(tmp_path):
    for seed in (1, 2):
        palm.save(palm.build(palm.preset("tiny"), backend="torch", seed=seed), tmp_path / f"step-{seed}")
    a, b = (f"{backend}:{tmp_path}/step-{i}" for i, backend in ((1, "torch"), (2, "jax")))
    report = report_of(tmp_path, run("compare", a, b, *SMALL[2:], "--out", tmp_path), status=1)
    assert "the weights differ in embedding and" in report["verdict"]
    assert [side["label"] for side in report["sides"]] == ["torch step-1", "jax step-2"]
    (only,) = report["diagnoses"]  # each side computes its own weights' function
    assert only["cause"] == "different weights"
    assert only["detail"].startswith("19 of 23 tensors differ; most of all, "), "norms all start at 1"


@pytest.mark.whole
def test_a_bundle_is_compared_with_another_and_with_a_live_side(tmp_path):
    for name, side, options in (
        ("excerpt", "jax", []),
        ("complete", "torch", ["--complete"]),
    ):
        done = run("record", side, *SMALL, *options, "--out", tmp_path / name)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{name}: {'complete' if options else 'an excerpt'}, " in done.stdout
    for a, b in (
        (tmp_path / "excerpt", tmp_path / "complete"),
        (tmp_path / "excerpt", "torch"),
        ("jax", tmp_path / "complete"),
    ):
        assert report_of(tmp_path, run("compare", a, b, "--out", tmp_path))["outcome"] == "agree"


@pytest.mark.whole
def test_a_recorded_fault_is_named_where_neither_framework_is(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(FAULTY_JAX)
    done = run("record", "jax", *SMALL, "--out", tmp_path / "jax", PYTHONPATH=python_path(tmp_path))
    assert done.returncode == 0, done.stderr
    assert run("record", "torch", *SMALL, "--out", tmp_path / "torch").returncode == 0
    report = report_of(
        tmp_path, run("compare", tmp_path / "torch", tmp_path / "jax", "--out", tmp_path), status=1
    )
    assert report["first_divergence"] == "blocks.0.feedforward"
    assert [diagnosis["cause"] for diagnosis in report["diagnoses"]] == ["up/gate swapped"]


@pytest.mark.whole
def test_a_checkpoints_excerpt_needs_the_checkpoint_to_say_why(tmp_path):
    palm.save(palm.build(palm.preset("tiny"), backend="torch", seed=1), tmp_path / "weights")
    palm.save(palm.build(palm.preset("tiny"), backend="torch", seed=2), tmp_path / "others")
    done = run("record", f"torch:{tmp_path}/weights", *SMALL[2:], "--out", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    bare = run("compare", tmp_path / "bundle", "jax", "--out", tmp_path)
    assert bare.returncode == 2
    assert "the bundle has only checksums of them. Pass --checkpoint." in bare.stderr
    wrong = run("compare", tmp_path / "bundle", "jax", "--checkpoint", tmp_path / "others", "--out", tmp_path)
    assert wrong.returncode == 2
    assert "weights must be those that torch (bundle) was recorded from" in wrong.stderr
    report_of(
        tmp_path,
        run("compare", tmp_path / "bundle", "jax", "--checkpoint", tmp_path / "weights", "--out", tmp_path),
    )


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "tourch"], "side must be backend[:checkpoint]"),
        (["compare", "torch:/nowhere"], "path must be a checkpoint directory"),
        (["compare", "torch", "jax@dtype=int8"], "dtype must be one of"),
        (["compare", "--repeat", "0"], "repeat must be a whole number of at least 1"),
        (["compare", "torch", "torch", "--train", "2"], "--train must have the sides torch and jax"),
        (["record", "palm_jax.palm", "--out", "x"], "side must be a live side without decode"),
        (
            ["compare", "palm_jax.palm", "palm_jax.palm_lite"],
            "an original must be compared with torch or jax",
        ),
        (
            ["compare", "torch:/nowhere", "jax:/nowhere", "--dim", "8", "--preset", "tiny"],
            "--preset, --dim cannot be used with checkpoints",
        ),
        (["compare", "palm_jax.palm", "jax@compile=off"], "must not set compile, matmul or remat"),
        (["compare", "torch@decode=on", "torch@rows=alone"], "must be compared with a plain one"),
        (
            ["compare", "torch@decode=on", "torch", "--repeat", "2"],
            "--repeat cannot be used with decode, rows",
        ),
        (
            ["compare", "torch:/nowhere", "torch@decode=on", "--depth", "2"],
            "--depth cannot be used with decode",
        ),
        (["record", "torch@decode=on", "--out", "x"], "side must be a live side without decode"),
        (["compare", "x" * 300], "side must be backend[:checkpoint]"),
        (["compare", "torch@device=meta"], "device must be a real device"),
        (["compare", "--out", "/dev/null/x"], "out must be a writable folder"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_sentence(arguments, words):
    done = run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
