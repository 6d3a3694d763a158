"""One side in a process of its own: the child of `palm compare`.

    echo '{"backend": "jax", "checkpoint": "DIR", "tokens": "FILE", …}' | python -m palm.parity.run.worker

JAX's x64 switch and memory pool are global and the two frameworks' thread pools fight, so the command line
gives each side its own process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from palm.backends import wing
from palm.checkpoint.checkpoint import load_arrays
from palm.config import PaLMConfig
from palm.data.corpus import open_corpus
from palm.errors import PalmError
from palm.models import common_dtype, from_numpy
from palm.parity.drift.trajectory import record_training
from palm.parity.drift.ulp import moved_by_an_ulp
from palm.parity.recording.bundle import write_bundle
from palm.parity.recording.excerpt import record_excerpt
from palm.parity.recording.recording import REMAT, Mode, record
from palm.parity.run.child import RECORDED
from palm.parity.run.followers import with_followers
from palm.parity.run.serving import served
from palm.process import lines_of_parent, refuse
from palm.recipes import Recipe
from palm.spec.initial import initial_weights
from palm.spec.parameters import numpy_dtype
from palm.spec.rounding import UNIT_ROUNDOFF


def main(request: dict[str, Any]) -> None:
    """Do what is asked for; one finished step a line on standard output."""
    with with_followers(request):
        (train if "recipe" in request else serve if request["is_served"] else probe)(request)


def probe(request: dict[str, Any]) -> None:
    """Build, record one forward and backward pass, write; once for each file of tokens."""
    if request["matmul"] is not None:
        wing(request["backend"]).set_matmul(request["matmul"])
    compiled = None if request["compile"] is None else request["compile"] == "on"
    mode = Mode(compile=compiled, remat=REMAT[request["remat"]], matmul=request["matmul"])
    is_excerpt = request.get("is_excerpt", False)
    for i, file in enumerate(request["tokens"]):
        model, seed = _model(request, request["seed"] + i)
        print("build", flush=True)
        tokens = np.load(file, allow_pickle=False)
        common: Any = {
            "label": request["label"],
            "mode": mode,
            "on_step": lambda step: print(step, flush=True),
        }
        if is_excerpt:
            recording: Any = record_excerpt(model, tokens, seed=seed, **common)
        else:
            recording = record(model, tokens, **common)
        del model  # the next one wants its memory
        if wing(request["backend"]).is_first():
            write_bundle(recording, Path(request["out"], *([] if "is_excerpt" in request else [str(i)])))
        print(RECORDED, flush=True)


def serve(request: dict[str, Any]) -> None:
    """Build, compute the logits of the one file of tokens as in serving, write them in at least float32."""
    if request["matmul"] is not None:
        wing(request["backend"]).set_matmul(request["matmul"])
    model, _ = _model(request, request["seed"])
    print("build", flush=True)
    [file] = request["tokens"]
    ways = {"decode": request["decode"] == "on", "rows": request["rows"], "padding": request["padding"]}
    logits = served(model, **ways)(np.load(file, allow_pickle=False))
    np.save(f"{request['out']}.npy", logits.astype(np.promote_types(logits.dtype, np.float32)))
    print("logits", flush=True)


def _model(request: dict[str, Any], seed: int) -> tuple[Any, int | None]:
    """The side's model, its weights rounded to the coarsest dtype of both sides; and their seed if drawn."""
    coarsest, path = request["coarsest"], request["checkpoint"] or request.get("weights")
    if path is None:
        config = PaLMConfig.from_dict(request["config"])
        weights = initial_weights(config, seed, coarsest, request.get("draw", "tiles"))
    else:
        config, stored = load_arrays(path)
        narrow, wide = numpy_dtype(coarsest), UNIT_ROUNDOFF[coarsest]
        own = UNIT_ROUNDOFF[common_dtype(stored)]
        weights = stored if own >= wide else {name: array.astype(narrow) for name, array in stored.items()}
    options = {name: request[name] for name in ("backend", "dtype", "device", "mesh", "attention")}
    return from_numpy(config, weights, **options), seed if path is None else None


def train(request: dict[str, Any]) -> None:
    """Build, the control from weights moved by one unit in the last place; train, write on the way."""
    recipe = Recipe.from_dict(request["recipe"])
    if request["checkpoint"] is None:
        config = PaLMConfig.from_dict(request["config"])
        weights = initial_weights(config, request["seed"], recipe.master)
    else:
        config, stored = load_arrays(request["checkpoint"])
        weights = {name: array.astype(numpy_dtype(recipe.master)) for name, array in stored.items()}
    if request["is_control"]:
        weights = moved_by_an_ulp(weights, request["seed"], recipe.precision)
    options = {name: request[name] for name in ("backend", "device", "attention")}
    model = from_numpy(config, weights, **options)
    print("build", flush=True)
    corpus = open_corpus(Path(request["ids"]))
    record_training(model, recipe, corpus, Path(request["out"]), on_step=lambda step: print(step, flush=True))


if __name__ == "__main__":
    try:
        main(json.loads(next(lines_of_parent())))
    except PalmError as error:
        refuse(error)
