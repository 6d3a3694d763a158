"""Two processes of a mesh, the second of which is given something else."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import palm
from palm.checkpoint.checkpoint import save_arrays
from palm.spec.initial import initial_weights


def main(what: str) -> dict[str, Any]:
    config = palm.PaLMConfig(num_tokens=11, dim=8, depth=1, heads=2, dim_head=4)
    steps, mesh, data = 2, {"data": 2}, np.arange(400) % 11
    weights = initial_weights(config.resolve("torch"), 0, "float32") if what.startswith("weights") else None
    rank = os.environ["RANK"]
    if rank == "1":
        steps = 3 if what == "steps" else steps
        mesh = {"model": 2} if what == "mesh" else mesh
        data = data[::-1].copy() if what == "data" else data
        if what in ("weights", "weights in a checkpoint"):
            weights["blocks.0.attention.query"][-1, -1] += 1e-6
        weights = None if what == "weights or none" else weights
    out = Path(tempfile.mkdtemp()) / "run" if what == "out" and rank == "0" else None
    if what.startswith("weights in a checkpoint") or (what == "weights or a checkpoint" and rank == "1"):
        weights = save_arrays(config.resolve("torch"), weights, Path(tempfile.mkdtemp()) / "model")
    recipe = palm.recipe("adamw", steps=steps, batch=2, length=8)
    try:
        palm.train(config, recipe, data, backend="torch", mesh=mesh, weights=weights, out=out)
    except palm.PalmError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {}
