"""One side in a process of its own: the child of `palm compare`.

    python -m palm.compare.worker '{"backend": "jax", "checkpoint": "DIR", "tokens": "FILE", "out": "DIR", …}'

JAX's x64 switch and memory pool are global and the two frameworks' thread pools fight, so the command line
gives each side its own process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from palm.backends import build
from palm.checkpoint import load
from palm.compare.probe import record, write_recording
from palm.config import PaLMConfig
from palm.errors import PalmError


def main(request: dict[str, Any]) -> None:
    """Build, record, write; one finished step a line on standard output."""
    options = {name: request[name] for name in ("backend", "dtype", "device", "attention")}
    if request["checkpoint"] is None:
        model = build(PaLMConfig.from_dict(request["config"]), seed=request["seed"], **options)
    else:
        model = load(request["checkpoint"], **options)
    print("build", flush=True)
    tokens = np.load(request["tokens"], allow_pickle=False)
    recording = record(model, tokens, on_step=lambda step: print(step, flush=True))
    write_recording(recording, Path(request["out"]))


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except PalmError as error:
        sys.exit(f"{type(error).__name__}: {error}")
