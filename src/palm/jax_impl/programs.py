"""Where compiled programs are kept. Mirror: palm.torch_impl.programs."""

from __future__ import annotations

from pathlib import Path

import jax


def keep_programs(folder: Path) -> None:
    """Keep what XLA compiles in `folder`, from now on in this process, and take it from there."""
    jax.config.update("jax_compilation_cache_dir", str(folder.resolve()))
    # All of it: by default programs that took less than a second are compiled anew.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
