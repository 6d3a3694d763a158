"""`palm train` and `palm generate` as a user runs them, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from palm.data.windows import standard_library_text

SMALL = ["--preset", "tiny", "--dim", "16", "--depth", "1", "--heads", "2", "--dim-head", "8"]
PACE = ["--batch", "2", "--length", "16", "--validate-every", "2", "--warmup", "2"]


def palm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "palm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_bytes(standard_library_text()[:20_000])
    return path


@pytest.mark.whole
def test_a_run_starts_in_one_framework_ends_in_the_other_and_both_write_the_same_text(text, tmp_path):
    run = tmp_path / "run"
    new = ["train", "--backend", "jax", *SMALL, *PACE, "--data", text, "--steps", "4", "--out", run]
    started = palm(*new, "--tensorboard")
    assert started.returncode == 0, started.stderr
    assert started.stdout == ""
    assert "step 4/4" in started.stderr
    changed = palm("train", "--resume", run, "--dim", "3", "--batch", "2", "--remat", "True")
    assert changed.returncode == 2
    assert (
        "must keep its model and recipe, except --steps; got dim=3, but the run has dim=16." in changed.stderr
    )
    changed = palm("train", "--resume", run, "--batch", "2", "--remat", "True")
    assert changed.returncode == 2
    assert (
        "must keep its model and recipe, except --steps; got remat=True, but the run has remat=False."
        in changed.stderr
    )
    resumed = palm("train", "--resume", run, "--backend", "torch", "--steps", "6", "--batch", "2")
    assert resumed.returncode == 0, resumed.stderr
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == list(range(1, 7))
    assert {"step", "loss", "grad_norm", "lr", "tokens", "tokens_per_s"} <= entries[0].keys()
    settings = json.loads((run / "run.json").read_text())
    assert settings["config"]["dim"] == 16
    assert settings["config"]["positions"] == "rotary"  # the jax original's, also in torch
    assert settings["recipe"]["batch"] == 2
    assert (run / "loss.png").exists()
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert (run / "step-00000006").is_dir()

    ask = [
        "generate",
        run,
        "--prompt",
        "import ",
        "--max-new-tokens",
        "30",
        "--temperature",
        "0.8",
        "--top-k",
        "25",
    ]
    by_torch, by_jax = (palm(*ask, "--backend", backend) for backend in ("torch", "jax"))
    assert by_torch.returncode == by_jax.returncode == 0, by_torch.stderr + by_jax.stderr
    assert by_torch.stdout == by_jax.stdout != ""
    assert by_torch.stderr == ""
    for checkpoint in ("step-00000006", "last"):
        assert palm("generate", run / checkpoint, *ask[2:]).stdout == by_torch.stdout
    other = palm(*ask, "--backend", "torch", "--seed", "1", "--logprobs", tmp_path / "log")
    assert other.stdout != by_torch.stdout
    assert len((tmp_path / "log").read_text().splitlines()) == 30


@pytest.mark.whole
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_cleanly_with_a_checkpoint(text, tmp_path, number):
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "palm",
        "train",
        "--backend",
        "torch",
        *SMALL,
        *PACE,
        "--steps",
        "1000000",
    ]
    process = subprocess.Popen([*command, "--data", text, "--out", run], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "--resume" in told
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (run / f"step-{steps[-1]:08d}").is_dir()


STREAMS = {
    "closed": "2>&-",
    "on a full disk": "2>/dev/full",
    "without a reader": "2>&1 >/dev/null | true",
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("stream", STREAMS)
def test_a_run_goes_on_when_nobody_takes_what_it_says(text, tmp_path, stream):
    """A run of hours may not end because its terminal, its log or its reader has."""
    run = tmp_path / "run"
    new = ["train", "--backend", "torch", *SMALL, *PACE, "--data", text, "--steps", "40", "--out", run]
    command = [sys.executable, "-m", "palm", *map(str, new)]
    shell = ["sh", "-c", f'"$@" {STREAMS[stream]}', "sh", *command]
    subprocess.run(shell, timeout=300, check=stream != "without a reader")
    assert (run / "step-00000040").is_dir()
    assert (run / "loss.png").exists()


@pytest.mark.whole
@pytest.mark.parametrize("name", [b"run \xff", "é".encode()])
def test_a_folder_of_bytes_may_be_trained_in_where_letters_are_ascii(text, tmp_path, name):
    out = os.fsencode(tmp_path) + b"/" + name
    new = ["train", "--backend", "torch", *SMALL, *PACE, "--data", text, "--steps", "2", "--out", out]
    command = [sys.executable, "-m", "palm", *new]
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, capture_output=True, timeout=300, check=False, env=ascii_only)
    assert done.returncode == 0, done.stderr
    assert os.path.exists(out + b"/loss.png")
    assert b"failed" not in done.stderr


@pytest.mark.whole
def test_a_folder_may_be_called_anything(text, tmp_path):
    """What looks like rich's markup is printed as it is, for a user to paste."""
    run = tmp_path / "run[lr=0.04][/a]"
    new = ["train", "--backend", "torch", *SMALL, *PACE, "--data", text, "--steps", "2", "--out", run]
    done = palm(*new)
    assert done.returncode == 0, done.stderr
    assert f"{run}/loss.png" in done.stderr


@pytest.mark.whole
def test_a_reader_that_has_seen_enough_ends_the_text_quietly(text, tmp_path):
    new = ["train", "--backend", "torch", *SMALL, *PACE, "--data", text, "--steps", "1"]
    assert palm(*new, "--out", tmp_path / "run").returncode == 0
    ask = [
        sys.executable,
        "-m",
        "palm",
        "generate",
        tmp_path / "run",
        "--prompt",
        "a",
        "--max-new-tokens",
        "900",
    ]
    with subprocess.Popen(ask, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        told = process.stderr.read()
    assert (process.returncode, told) == (141, b"")


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train"], "--data and --out"),
        (["train", "--data", "nowhere.txt", "--out", "run"], "nowhere.txt"),
        (["train", "--resume", "nowhere"], "nowhere"),
        (["generate", "nowhere", "--prompt", "x"], "nowhere"),
        (["train", "--data", "nowhere.txt", "--out", "run", "--recipe", "none"], "recipe must be one of"),
        (["train", "--resume", "nowhere", "--preset", "tiny"], "must come without --preset"),
        (["data", "fetch", "nothing"], "enwik8"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = palm(*arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("palm: ")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.whole
def test_a_run_goes_on_under_flags_that_say_what_it_does(text, tmp_path):
    run = tmp_path / "run"
    ramp = ["--ramp", "2", "4", "3", "6"]
    done = palm(
        "train", "--backend", "torch", *SMALL, *PACE, *ramp, "--data", text, "--steps", "2", "--out", run
    )
    assert done.returncode == 0, done.stderr
    done = palm("train", "--resume", run, *ramp, "--remat", "False", "--steps", "3")
    assert done.returncode == 0, done.stderr
    done = palm("train", "--resume", run, "--ramp", "2", "4", "3", "8")
    assert done.returncode == 2
    assert "got ramp=((2, 4), (3, 8)), but the run has ramp=((2, 4), (3, 6))." in done.stderr


@pytest.mark.whole
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_compiled_programs_are_kept_in_a_folder_and_taken_from_there(backend, text, tmp_path):
    """Torch compiles nothing on a CPU, and takes the flag all the same."""
    kept = tmp_path / "programs"
    new = ["train", "--backend", backend, *SMALL, *PACE, "--data", text, "--steps", "2"]
    found = []
    for run in ("one", "two"):
        done = palm(*new, "--out", tmp_path / run, "--compile-cache", kept)
        assert done.returncode == 0, done.stderr
        found.append({file.name for file in kept.glob("*") if not file.name.endswith("-atime")})
    assert found[0] == found[1]
    assert bool(found[0]) == (backend == "jax")
