"""A run that goes on under another mesh, on other processes, in the other framework: the same run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import assert_same_bits

from palm.checkpoint.checkpoint import load_arrays

# A part of a run, in processes of its own. The last of them is asked to stop after a step.
PART = """
import json, os, signal, sys
backend, folder, mesh, last, seed = sys.argv[1:]
if backend == "jax":
    import jax
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_enable_x64", True)
import numpy as np
import palm

config = palm.PaLMConfig(num_tokens=32, dim=16, depth=2, heads=4, dim_head=4).resolve("jax")
options = {"precision": "float64", "validation": 0.2, "warmup": 2, "accumulate": 2}
recipe = palm.recipe("bytes", steps=8, batch=8, length=12, **options)
ids = np.cumsum(np.random.default_rng(int(seed)).choice([1, 5, 9], 4000)) % 32
rank, processes = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))

def stop(entry):
    if entry["step"] == int(last) and rank == processes - 1:
        os.kill(os.getpid(), signal.SIGTERM)

where = {"backend": backend, "mesh": mesh or None, "on_step": stop}
if os.path.exists(os.path.join(folder, "run.json")):
    found = palm.resume(folder, data=ids, **where)
else:
    found = palm.train(config, recipe, ids, out=folder, **where)
if rank == 0:
    print(json.dumps(found.step))
"""


def go_on(folder: Path, backend: str, mesh: str, last: int, *, processes: int = 1, seed: int = 0) -> None:
    """Train the run in a folder up to a step; make it if it is not there."""
    script = folder.parent / "part.py"
    script.write_text(PART)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(script)]
    arguments = [backend, str(folder), mesh, str(last), str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == last


def figures(folder: Path) -> list[list[float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [[e["loss"], e["grad_norm"]] for e in entries] + [[entries[-1]["val_loss"], 0.0]]


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_arrays(folder)[1]


def distance(a: Path, b: Path) -> float:
    """By how much the last weights of two runs differ, of their size."""
    ours, theirs = weights(a), weights(b)
    return max(float(np.abs(ours[name] - x).max() / np.abs(x).max()) for name, x in theirs.items())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("unbroken") / "run"
    go_on(folder, "jax", "", 8)
    return folder


JAX, TORCH = "jax", "torch"
WAYS = {
    "jax on 4, 2, 1, 4 devices": [
        (JAX, "data=4", 2, 1),
        (JAX, "model=2", 4, 1),
        (JAX, "data=1", 6, 1),
        (JAX, "data=2,model=2", 8, 1),
    ],
    "torch on 4, 2, 1, 4 processes": [
        (TORCH, "data=2,model=2", 2, 4),
        (TORCH, "data=2", 4, 2),
        (TORCH, "data=1", 6, 1),
        (TORCH, "data=4", 8, 4),
    ],
    "across frameworks": [
        (JAX, "data=2,model=2", 2, 1),
        (TORCH, "data=2", 4, 2),
        (JAX, "pod=2,data=2", 6, 1),
        (TORCH, "model=2", 8, 2),
    ],
}


@pytest.mark.whole
@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_under_another_mesh(tmp_path, unbroken, way):
    folder = tmp_path / "run"
    for backend, mesh, last, processes in WAYS[way]:
        go_on(folder, backend, mesh, last, processes=processes)
    assert np.abs(np.subtract(figures(folder), figures(unbroken))).max() <= 1e-13
    assert distance(folder, unbroken) <= 1e-12


@pytest.mark.whole
def test_another_data_order_is_another_run(tmp_path, unbroken):
    folder = tmp_path / "run"
    go_on(folder, "jax", "data=4", 8, seed=1)
    assert np.abs(np.subtract(figures(folder), figures(unbroken))).max() > 1e-3
    assert distance(folder, unbroken) > 1e-3


@pytest.mark.whole
@pytest.mark.parametrize(("backend", "processes"), [("jax", 1), ("torch", 4)])
def test_a_run_goes_on_bit_for_bit_on_the_same_mesh(tmp_path, backend, processes):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    mesh = "data=2,model=2"
    go_on(whole, backend, mesh, 8, processes=processes)
    for last in (3, 8):
        go_on(broken, backend, mesh, last, processes=processes)
    assert figures(whole) == figures(broken)
    assert_same_bits(weights(whole), weights(broken))
