"""How well do the recipes learn? Validation bits per byte, lower is better.

    python benchmarks/learning.py ngram       ten minutes of the byte-level recipe against a 5-gram model
    python benchmarks/learning.py originals   equal budgets: the recipe, and the originals' own scripts

The text is Python's own documentation, its last 5 % held out: every docstring of the standard library, so the
figures are of one version of Python. Results go to benchmarks/results/learning_*.json with the machine.
"""

from __future__ import annotations

import ast
import json
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ngram import ngram_bits_per_byte
from originals import SOURCES, train_original

import palm
from palm.data.corpus import Corpus, open_corpus
from palm.data.windows import split, validation_windows, windows
from palm.parity.recording.recording import environment

RESULTS = Path(__file__).parent / "results"
# What a 2-core machine trains in ten minutes, if its cores multiply bfloat16.
LARGE = {"dim": 192, "depth": 4, "heads": 6, "dim_head": 32}
BUDGET = {"steps": 7000, "batch": 4, "length": 256, "precision": "bfloat16"}
# The originals' comparison: smaller, for there are five runs of it.
SMALL = {"dim": 128, "depth": 4, "heads": 4, "dim_head": 32}
EQUAL = {"steps": 400, "batch": 8, "length": 128}
WINDOWS = 400
# A window's first tokens have little before them; an n-gram model always has all it can use.
LONG = 1024


def docstrings() -> bytes:
    """Every docstring of the standard library's public modules, in the order of their files."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if name.startswith("_") or any(
            part in name for part in ("site-packages", "test", "idlelib", "lib2to3")
        ):
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found += [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return "\n\n".join(text for text in found if text).encode()


def learn(text: bytes, backend: str, model: dict[str, int], **settings: Any) -> dict[str, Any]:
    """Train with the recipe; the log's last validation and the seconds it took."""
    config = palm.preset("small", **model).resolve(backend)
    recipe = palm.recipe("bytes", **settings)
    started = time.monotonic()

    def tell(entry: dict[str, Any]) -> None:
        if "val_loss" in entry:
            print(f"  {backend} step {entry['step']}: {entry['val_bits_per_byte']:.3f}", flush=True)

    cadence = palm.Cadence(validate_every=1000, validate_windows=WINDOWS)
    trained = palm.train(config, recipe, text, backend=backend, cadence=cadence, on_step=tell)
    return {
        "bits_per_byte": trained.log[-1]["val_bits_per_byte"],
        "bits_per_byte_in_windows_of_1024": in_long_windows(text, trained.model),
        "seconds": time.monotonic() - started,
        "parameters": sum(array.size for array in palm.to_numpy(trained.model).values()),
        "model": model,
        "settings": settings,
    }


def in_long_windows(text: bytes, model: Any) -> float:
    """Validation bits per byte with more context than the model was trained on."""
    _, held_out = split(open_corpus(text), palm.recipe("bytes").validation)
    assert held_out is not None
    found = validation_windows(held_out, length=LONG, limit=WINDOWS)
    losses = [palm.value_and_grad(model, window[None])[0] for window in found]
    return float(np.mean(losses) / np.log(2))


def against_ngram(text: bytes) -> dict[str, Any]:
    cut = len(text) - int(len(text) * 0.05)
    grams = {order: ngram_bits_per_byte(text[:cut], text[cut:], order) for order in (3, 4, 5, 6)}
    return {"ngram": grams, "palm": learn(text, "torch", LARGE, **BUDGET)}


def against_originals(text: bytes) -> dict[str, Any]:
    """The same windows, steps and sizes; each original by its own script's recipe, seed 0."""
    corpus, held_out = split(open_corpus(text), palm.recipe("bytes").validation)
    assert held_out is not None
    validation = validation_windows(held_out, length=EQUAL["length"], limit=WINDOWS)
    found: dict[str, Any] = {}
    for source in SOURCES:
        # The JAX script applies each micro-batch's own update: four of them are its step.
        for accumulate in (1, 4) if source.startswith("palm_jax") else (1,):
            started = time.monotonic()
            bits = train_original(
                source, batches(corpus), validation, **SMALL, **EQUAL, seed=0, accumulate=accumulate
            )
            key = source if accumulate == 1 else f"{source}, {accumulate} updates a step"
            found[key] = {"bits_per_byte": bits, "seconds": time.monotonic() - started}
            print(f"  {key}: {bits:.3f}", flush=True)
    for backend in ("torch", "jax"):
        found[f"palm, {backend}"] = learn(text, backend, SMALL, **EQUAL)
    return found


def batches(corpus: Corpus) -> Iterator[np.ndarray]:
    for step in range(EQUAL["steps"]):
        rows = EQUAL["batch"]
        yield windows(corpus, seed=0, first=step * rows, rows=rows, length=EQUAL["length"])


def main() -> None:
    which = sys.argv[1]
    text = docstrings()
    results = {"ngram": against_ngram, "originals": against_originals}[which](text)
    report = {"environment": environment(), "text_bytes": len(text), "results": results}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"learning_{which}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
