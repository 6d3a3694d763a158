"""A hundred steps in two processes of each framework, from the same weights, are the same hundred steps."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import assert_same_bits

import palm
from palm.checkpoint.progress import load_progress
from palm.data.windows import python_documentation_text
from palm.training.run_folder import Run

PROCESSES, STEPS = 2, 100
CONFIG = palm.preset("tiny", dim=32, depth=2, heads=4, dim_head=8).resolve("jax")
RECIPE = ["--recipe", "adamw", "--batch", "8", "--length", "32", "--warmup", "10"]
RATE = 1e-3
# How far losses and gradient norms, in nats, and weights and moments, of their size, may be apart.
EXACT, NATS = 1e-12, 1e-4
XLA = "--xla_backend_optimization_level=0 --xla_cpu_collective_call_terminate_timeout_seconds=900"


def train(folder: Path, backend: str, precision: str, *, rate: float = RATE, steps: int = STEPS) -> Run:
    """The run of two processes that begins with the weights in `folder`."""
    out = folder / f"{backend}-{precision}-{rate}"
    command = [
        sys.executable,
        "-m",
        "palm",
        "train",
        "--backend",
        backend,
        "--distributed",
        "--mesh",
        "data=2",
    ]
    command += ["--checkpoint", str(folder / "start"), "--data", str(folder / "text.txt"), "--out", str(out)]
    command += [*RECIPE, "--precision", precision, "--learning-rate", repr(rate), "--steps", str(steps)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(PROCESSES)}
    common |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(PROCESSES)}
    common |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": str(int(precision == "float64")), "XLA_FLAGS": XLA}
    common |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank, "JAX_PROCESS_ID": rank},
            **pipes,
        )
        for rank in map(str, range(PROCESSES))
    ]
    try:
        told = [process.communicate(timeout=900)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * PROCESSES, told
    return Run(out)


def gap(one: Run, other: Run, *names: str) -> float:
    """The largest difference of what the logs say."""
    ours, theirs = ([[entry[name] for name in names] for entry in run.entries()] for run in (one, other))
    return float(np.abs(np.subtract(ours, theirs)).max())


def distance(one: Run, other: Run) -> float:
    """By how much weights and moments differ in the end, of the size of each tensor."""
    (_, ours, a), (_, theirs, b) = (load_progress(run.checkpoint()) for run in (one, other))
    ours, theirs = {**ours, **a.moments}, {**theirs, **b.moments}
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[name] - x).max() / np.abs(x).max()) for name, x in theirs.items())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    found: Path = tmp_path_factory.mktemp("two")
    (found / "text.txt").write_bytes(python_documentation_text()[:200_000])
    palm.save(palm.build(CONFIG, backend="torch", seed=3), found / "start")
    return found


@pytest.mark.whole
def test_a_hundred_steps_in_float64(folder):
    torch, jax = (train(folder, backend, "float64") for backend in ("torch", "jax"))
    starts = [load_progress(run.checkpoint(0)) for run in (torch, jax)]
    assert_same_bits(starts[0][1], starts[1][1])
    losses, weights = gap(torch, jax, "loss", "grad_norm"), distance(torch, jax)
    print(f"\nfloat64: losses and gradient norms {losses:.1e}, weights and moments {weights:.1e}")
    assert len(jax.entries()) == STEPS
    assert losses <= EXACT
    assert weights <= EXACT
    other = train(folder, "torch", "float64", rate=RATE * (1 + 1e-9))
    print(f"a rate that is off by 1e-9: {gap(other, jax, 'loss'):.1e}, {distance(other, jax):.1e}")
    assert gap(other, jax, "loss") > 10 * EXACT
    assert distance(other, jax) > 10 * EXACT


@pytest.mark.whole
def test_a_hundred_steps_in_float32(folder):
    torch, jax = (train(folder, backend, "float32") for backend in ("torch", "jax"))
    losses = gap(torch, jax, "loss")
    print(f"\nfloat32: losses {losses:.1e} nats")
    assert len(jax.entries()) == STEPS
    assert losses <= NATS
    other = train(folder, "torch", "float32", rate=RATE * 1.01)
    print(f"a rate that is off by a hundredth: {gap(other, jax, 'loss'):.1e}")
    assert gap(other, jax, "loss") > 10 * NATS
