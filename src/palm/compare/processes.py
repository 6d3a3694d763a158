"""`palm compare`: each side, and each training, in a process of its own; what judges them in this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from palm.backends import check_installed
from palm.compare.butterfly import RUNS, Butterfly, butterfly
from palm.compare.diff import Comparison, compare
from palm.compare.probe import read_recording
from palm.compare.trajectory import read_trajectory
from palm.config import BACKENDS
from palm.corpus import open_corpus
from palm.data import windows
from palm.errors import ProbeError
from palm.params import DType
from palm.recipe import Recipe

OnStep = Callable[[str, str], None]


@dataclass(frozen=True)
class Source:
    """Where both sides get their model: a resolved config and a seed, or a checkpoint directory."""

    config: dict[str, Any]
    seed: int
    checkpoint: str | None


def compare_backends(
    source: Source,
    tokens: np.ndarray,
    *,
    dtype: DType,
    device: str | None,
    attention: str,
    on_step: OnStep,
) -> Comparison:
    """Build one model in both wings, one process each, and compare them on `tokens`.

    `on_step(side, step)` is called as each side ("torch", "jax") finishes one of `probe.STEPS`, and when the
    referee is done. Raises `MissingFrameworkError`, and `ProbeError` with a side's own words if it fails.
    """
    for backend in BACKENDS:
        check_installed(backend)
    with tempfile.TemporaryDirectory(prefix="palm-compare-") as name, ExitStack() as stack:
        folder = Path(name)
        np.save(folder / "tokens.npy", tokens)
        common = {**asdict(source), "dtype": dtype, "device": device, "attention": attention}
        common["tokens"] = str(folder / "tokens.npy")
        sides = {
            backend: stack.enter_context(
                _child(backend, {**common, "backend": backend, "out": str(folder / backend)}, on_step)
            )
            for backend in BACKENDS
        }
        for wait in sides.values():
            wait()
        recordings = [read_recording(folder / backend) for backend in BACKENDS]
    return compare(*recordings, on_step=lambda step: on_step("referee", step))


def train_backends(
    source: Source,
    text: bytes,
    recipe: Recipe,
    *,
    device: str | None,
    attention: str,
    on_step: OnStep,
) -> Butterfly:
    """Train one model in both wings on the same batches, and once more in torch from weights an ulp away.

    One process after another: each has all cores and the device's memory to itself. `on_step(run, step)` is
    called as each run of `butterfly.RUNS` finishes one of its `training_steps`. Raises `DataError` if the
    text is shorter than a window, `MissingFrameworkError`, and `ProbeError` with the words of a run that
    fails.
    """
    for backend in BACKENDS:
        check_installed(backend)
    windows(open_corpus(text), seed=recipe.seed, first=0, rows=1, length=recipe.length)
    with tempfile.TemporaryDirectory(prefix="palm-compare-") as name:
        folder = Path(name)
        np.save(folder / "text.npy", np.frombuffer(text, np.uint8))
        common = {**asdict(source), "dtype": recipe.precision, "device": device, "attention": attention}
        common |= {"recipe": recipe.to_dict(), "text": str(folder / "text.npy")}
        for run in RUNS:
            own = {"backend": "jax" if run == "jax" else "torch", "is_control": run == "control"}
            with _child(run, {**common, **own, "out": str(folder / run)}, on_step) as wait:
                wait()
        return butterfly(*(read_trajectory(folder / run) for run in RUNS))


def training_steps(recipe: Recipe) -> int:
    """How many steps a training reports: the build, and k = 0 … N."""
    return recipe.steps + 2


@contextmanager
def _child(side: str, request: dict[str, Any], on_step: OnStep) -> Iterator[Callable[[], None]]:
    """Start one process; yields a function that waits for it. It never outlives the block."""
    command = [sys.executable, "-m", "palm.compare.worker", json.dumps(request)]
    environment = {**os.environ, "JAX_ENABLE_X64": str(request["dtype"] == "float64")}
    complaints: list[str] = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        readers = [
            threading.Thread(target=_follow, args=(process.stdout, lambda line: on_step(side, line))),
            threading.Thread(target=_follow, args=(process.stderr, complaints.append)),
        ]
        for reader in readers:
            reader.start()

        def wait() -> None:
            status = process.wait()
            for reader in readers:
                reader.join()
            if status:
                words = "\n".join(complaints)
                raise ProbeError(f"the {side} side must finish; it ended with status {status}:\n{words}")

        try:
            yield wait
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            for reader in readers:
                reader.join()


def _follow(stream: IO[str] | None, consume: Callable[[str], None]) -> None:
    for line in stream or ():
        consume(line.rstrip("\n"))
