"""A run that is killed with SIGKILL at random moments ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from palm.checkpoint.progress import load_progress
from palm.data.windows import python_documentation_text
from palm.training.lock import LOCK
from palm.training.run_folder import METRICS, SETTINGS, Run

KILLS = int(os.environ.get("PALM_KILLS", "100"))
# More than a fast machine makes between the kills.
STEPS = 100 * KILLS
SMALL = ["--dim", "16", "--depth", "2", "--heads", "2", "--dim-head", "8"]
PACE = ["--batch", "4", "--length", "32", "--checkpoint-every", "2", "--validate-every", "50", "--keep", "2"]


def command(backend: str, data: Path, out: Path) -> list[str]:
    start = [sys.executable, "-m", "palm", "train"]
    if (out / SETTINGS).exists():
        return [*start, "--resume", str(out)]
    new = ["--preset", "tiny", "--backend", backend, "--data", str(data), "--out", str(out)]
    return [*start, *new, *SMALL, *PACE, "--steps", str(STEPS), "--validate-windows", "4"]


def lines(out: Path) -> int:
    try:
        return (out / METRICS).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def kill_at_random(process: subprocess.Popen[str], out: Path, rng: random.Random) -> bool:
    """Kill some time into the start, or after some steps; whether it was still running."""
    patience, wanted = (rng.uniform(0, 6), 25) if rng.random() < 0.2 else (60.0, rng.randint(0, 10))
    before, deadline = lines(out), time.monotonic() + patience
    while process.poll() is None and lines(out) < before + wanted and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.05))
    alive = process.poll() is None
    if alive:
        process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    return alive


def start(backend: str, data: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(backend, data, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(backend: str, data: Path, out: Path) -> None:
    done = subprocess.run(
        command(backend, data, out), capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_run_killed_at_random_moments_ends_bit_for_bit_as_the_unbroken_one(backend, tmp_path):
    data = tmp_path / "text.txt"
    data.write_bytes(python_documentation_text()[:200_000])
    rng = random.Random(backend)
    killed, out = 0, tmp_path / "killed"
    started = time.monotonic()
    while killed < KILLS:
        process = start(backend, data, out)
        killed += kill_at_random(process, out, rng)
        assert process.returncode in (0, -signal.SIGKILL)
        assert process.returncode or killed == KILLS, "the run ended before it was killed often enough"
        if (out / SETTINGS).exists():
            load_progress(Run(out).checkpoint("last"))  # whatever the moment, the newest one is whole
    finish(backend, data, out)
    print(f"\n{backend}: {killed} kills in {time.monotonic() - started:.0f} s")
    finish(backend, data, tmp_path / "whole")

    assert [entry.name for entry in out.iterdir() if entry.name.startswith(".")] == [LOCK]
    ends = [Run(tmp_path / name) for name in ("killed", "whole")]
    found = [
        [json.dumps((entry["step"], entry["loss"], entry["grad_norm"])) for entry in end.entries()]
        for end in ends
    ]
    assert found[0] == found[1]
    assert len(found[0]) == STEPS
    (_, weights, progress), (_, whole_weights, whole_progress) = (
        load_progress(end.checkpoint(STEPS)) for end in ends
    )
    for one, other in ((weights, whole_weights), (progress.moments, whole_progress.moments)):
        assert one.keys() == other.keys()
        assert all(array.tobytes() == other[name].tobytes() for name, array in one.items())
    assert progress.fields == whole_progress.fields
