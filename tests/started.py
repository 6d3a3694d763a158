"""A run on a mesh that starts from a checkpoint, beside the same one that starts from its arrays."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import palm
from palm.backends import wing
from palm.checkpoint.boxes import Boxes
from palm.checkpoint.checkpoint import save_arrays
from palm.config import Backend
from palm.spec.initial import initial_weights
from palm.training import start
from palm.training.start import digest_of

CONFIG = palm.PaLMConfig(num_tokens=16, dim=8, depth=3, heads=4, dim_head=4, ff_mult=2).resolve("torch")
RECIPE = palm.recipe("adamw", batch=4, length=6, steps=2, warmup=1)
IDS = np.random.default_rng(0).integers(0, 16, 300)


def started(backend: Backend, mesh: str, folder: Path) -> dict[str, Any]:
    """What a process finds. `read`: the numbers that it reads of the checkpoint, over those in it."""
    processes = wing(backend)
    arrays = initial_weights(CONFIG, 5, "float32")
    if processes.is_first():
        save_arrays(CONFIG, arrays, folder / "base")
    processes.wait()
    fill, read = Boxes.read_into, list[int]()

    def watched(boxes: Boxes, room: np.ndarray, *at: Any) -> None:
        read.append(math.prod(room.shape))
        fill(boxes, room, *at)

    def whole(path: Path) -> None:
        raise AssertionError(f"all of {path} is read")

    options: dict[str, Any] = {"backend": backend, "mesh": mesh}
    with patch.object(Boxes, "read_into", watched), patch.object(start, "load_arrays", whole):
        a = palm.train(CONFIG, RECIPE, IDS, weights=folder / "base", out=folder / "a", **options)
    b = palm.train(CONFIG, RECIPE, IDS, weights=arrays, out=folder / "b", **options)
    drawn = palm.train(CONFIG, RECIPE, IDS, **options)
    told = [json.loads((folder / run / "run.json").read_text("utf-8"))["start"] for run in "ab"]
    learnt, same = palm.to_numpy(a.model), palm.to_numpy(b.model)
    return {
        "losses": [[entry["loss"] for entry in run.log] for run in (a, b, drawn)],
        "weights": all(np.array_equal(learnt[name], same[name]) for name in arrays),
        "digests": [one["weights"] for one in told] == [digest_of(arrays)] * 2,
        "checkpoint": told[0]["checkpoint"] == str((folder / "base").resolve()),
        "read": sum(read) / sum(array.size for array in arrays.values()),
    }


def assert_started(found: dict[str, Any]) -> None:
    """The run is that of the arrays, and another one than that of drawn weights."""
    of_checkpoint, of_arrays, drawn = found["losses"]
    assert of_checkpoint == of_arrays != drawn
    assert all(found[what] for what in ("weights", "digests", "checkpoint"))
