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

from palm.backends import build, from_numpy
from palm.checkpoint import load, load_arrays
from palm.compare.probe import record, write_recording
from palm.compare.trajectory import moved_by_an_ulp, record_training
from palm.config import PaLMConfig
from palm.corpus import open_corpus
from palm.errors import PalmError
from palm.params import DType, initial_value, numpy_dtype, parameters
from palm.recipe import Recipe


def main(request: dict[str, Any]) -> None:
    """Do what is asked for; one finished step a line on standard output."""
    (train if "recipe" in request else probe)(request)


def probe(request: dict[str, Any]) -> None:
    """Build, record one forward and backward pass, write."""
    options = {name: request[name] for name in ("backend", "dtype", "device", "attention")}
    if request["checkpoint"] is None:
        model = build(PaLMConfig.from_dict(request["config"]), seed=request["seed"], **options)
    else:
        model = load(request["checkpoint"], **options)
    print("build", flush=True)
    tokens = np.load(request["tokens"], allow_pickle=False)
    recording = record(model, tokens, on_step=lambda step: print(step, flush=True))
    write_recording(recording, Path(request["out"]))


def train(request: dict[str, Any]) -> None:
    """Build, the control from weights moved by one unit in the last place; train, write on the way."""
    recipe = Recipe.from_dict(request["recipe"])
    master: DType = "float64" if recipe.precision == "float64" else "float32"
    if request["checkpoint"] is None:
        config = PaLMConfig.from_dict(request["config"])
        weights = {p.name: initial_value(p, request["seed"], master) for p in parameters(config).values()}
    else:
        config, stored = load_arrays(request["checkpoint"])
        weights = {name: array.astype(numpy_dtype(master)) for name, array in stored.items()}
    if request["is_control"]:
        weights = moved_by_an_ulp(weights, request["seed"])
    options = {name: request[name] for name in ("backend", "device", "attention")}
    model = from_numpy(config, weights, **options)
    print("build", flush=True)
    corpus = open_corpus(Path(request["text"]))
    record_training(model, recipe, corpus, Path(request["out"]), on_step=lambda step: print(step, flush=True))


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except PalmError as error:
        sys.exit(f"{type(error).__name__}: {error}")
