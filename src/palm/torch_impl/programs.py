"""Where compiled programs are kept. Mirror: palm.jax_impl.programs."""

from __future__ import annotations

import os
from pathlib import Path


def keep_programs(folder: Path) -> None:
    """Keep what torch.compile compiles in `folder`, from now on in this process, and take it from there."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder.resolve())
