"""`palm compare`: each side in a process of its own, then the referee in this one."""

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
from palm.compare.diff import Comparison, compare
from palm.compare.probe import read_recording
from palm.config import BACKENDS, Backend
from palm.errors import ProbeError
from palm.params import DType

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
            backend: stack.enter_context(_side(backend, {**common, "out": str(folder / backend)}, on_step))
            for backend in BACKENDS
        }
        for wait in sides.values():
            wait()
        recordings = [read_recording(folder / backend) for backend in BACKENDS]
    return compare(*recordings, on_step=lambda step: on_step("referee", step))


@contextmanager
def _side(backend: Backend, request: dict[str, Any], on_step: OnStep) -> Iterator[Callable[[], None]]:
    """Start one side; yields a function that waits for it. The process never outlives the block."""
    command = [sys.executable, "-m", "palm.compare.worker", json.dumps({**request, "backend": backend})]
    environment = {**os.environ, "JAX_ENABLE_X64": str(request["dtype"] == "float64")}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    complaints: list[str] = []
    readers = [
        threading.Thread(target=_follow, args=(process.stdout, lambda line: on_step(backend, line))),
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
            raise ProbeError(f"the {backend} side must finish; it ended with status {status}:\n{words}")

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
