"""A trace of what a run does. Mirror: palm.torch_impl.profile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax


@contextmanager
def profiled(folder: Path) -> Iterator[None]:
    """Write what happens meanwhile into `folder`: a profile for XProf, and in it a trace.json.gz.

    Perfetto and Chrome open that. Raises what JAX's profiler raises, and `OSError`.
    """
    # Before: JAX never ends a profile that it cannot write.
    folder.mkdir(parents=True, exist_ok=True)
    with jax.profiler.trace(folder):
        yield
