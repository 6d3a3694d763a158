"""A trace of what a run does. Mirror: palm.jax_impl.profile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile


@contextmanager
def profiled(folder: Path) -> Iterator[None]:
    """Write what happens meanwhile into `folder`: trace.json.gz, which Perfetto and Chrome open.

    Raises what PyTorch's profiler raises, and `OSError`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    # Of all threads: a trainer has one of its own.
    options = _ExperimentalConfig(profile_all_threads=True)
    with profile(activities=activities, experimental_config=options) as found:
        yield
    found.export_chrome_trace(str(folder / "trace.json.gz"))
