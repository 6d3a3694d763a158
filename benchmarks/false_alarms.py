"""Right programs that must raise no alarm, and faults in bfloat16 that must not pass as rounding.

Right runs: palm's wings against each other, and ports in NumPy, PyTorch and JAX, with weights that amplify
rounding. Results go to benchmarks/results/alarms.json. `right`, `faults` or both as arguments.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from foreign_ports import FAULTS, port

import palm
from palm.parity.recording.recording import environment
from palm.spec.parameters import DTYPES, initial_value, parameters

RESULTS = Path(__file__).parent / "results" / "alarms.json"
SHAPE: dict[str, Any] = {"num_tokens": 96, "dim": 48, "depth": 2, "heads": 4, "dim_head": 16, "ff_mult": 2}
Weights = dict[str, np.ndarray]


def weights_of(config: palm.PaLMConfig, seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    return {
        name: initial_value(one, seed, "float64") if one.std else 1 + 0.2 * rng.standard_normal(one.shape)
        for name, one in parameters(config).items()
    }


def scaled(weights: Weights, change: Any) -> None:
    for name, weight in weights.items():
        if name.endswith("norm"):
            change(weight)


def regimes() -> Iterator[tuple[str, dict[str, Any], Any, int]]:
    """What the weights are like: a name, fields of the config, a change of the weights, how many tokens."""
    rng = np.random.default_rng(0)

    def mean(size: float) -> Any:
        return lambda w: w.update(embedding=w["embedding"] + size * w["embedding"].std())

    def channels(w: Weights) -> None:
        scaled(w, lambda g: np.multiply(g[:2], 30, out=g[:2]))

    def wide(w: Weights) -> None:
        scaled(w, lambda g: np.copyto(g, np.exp(rng.uniform(np.log(0.01), np.log(20), g.shape))))

    def trained(w: Weights) -> None:
        """Few large singular values and rows of many sizes, as training makes them."""
        for name, weight in w.items():
            if weight.ndim == 2:
                u, s, v = np.linalg.svd(weight, full_matrices=False)
                w[name] = u * (s.max() * np.arange(1, s.size + 1) ** -0.7) @ v
        w["embedding"] *= np.exp(0.5 * rng.standard_normal((len(w["embedding"]), 1)))

    yield "fresh", {}, lambda w: None, 64
    for size in (10, 50, 100):
        yield f"embedding + {size}σ", {}, mean(size), 64
    yield "embedding + 20", {"init": "reference"}, lambda w: w.update(embedding=w["embedding"] + 20), 64
    yield "two channels × 30", {}, channels, 64
    yield "norm scales 0.01 to 20", {}, wide, 64
    yield "as trained", {}, trained, 64
    yield "depth 24", {"depth": 24}, lambda w: None, 32
    yield "1,500 tokens", {"heads": 2, "dim_head": 8}, lambda w: None, 1500
    for heads in (1, 7, 20):
        yield f"{heads} heads", {"heads": heads, "dim_head": 4}, lambda w: None, 64
    for width in (4, 6, 128):
        yield f"dim_head {width}", {"dim_head": width, "heads": 2}, lambda w: None, 64
    yield "vocabulary 5", {"num_tokens": 5}, lambda w: None, 64


def right() -> dict[str, Any]:
    """Counts of the outcomes; what is told where they do not agree."""
    told: list[str] = []
    counts, worst = Counter[str](), 0.0
    for name, fields, change, length in regimes():
        start, here, before = time.time(), Counter[str](), len(told)
        for arch, init, seed in (("torch", "paper", 0), ("jax", "reference", 1)):
            config = palm.PaLMConfig(**{**SHAPE, "init": init, **fields}).resolve(arch)
            wide = weights_of(config, seed)
            change(wide)
            ids = np.random.default_rng(seed).integers(0, config.num_tokens, length)
            for dtype in ("float32", "bfloat16"):
                weights = {key: weight.astype(DTYPES[dtype]) for key, weight in wide.items()}
                for label, found in pairs(config, weights, ids, dtype):
                    here[found.outcome] += 1
                    if not found.agree:
                        told.append(f"{name}, {arch}, {dtype}, {label}: {found.verdict}")
                    elif getattr(found, "need", 0) > 0:
                        worst = max(worst, found.before / found.need)
        counts += here
        print(f"{name}: {dict(here)}, {time.time() - start:.0f} s", flush=True)
        print(*(f"  {line}" for line in told[before:]), sep="\n", flush=True)
        jax.clear_caches()
    return {"outcomes": dict(counts), "told": told, "largest distance over need": worst}


def pairs(
    config: palm.PaLMConfig, weights: Weights, ids: np.ndarray, dtype: str
) -> Iterator[tuple[str, Any]]:
    """The wings against each other, and every port against one of them."""
    models = {wing: palm.from_numpy(config, weights, backend=wing) for wing in ("torch", "jax")}
    yield "wings", palm.compare(models["torch"], models["jax"], ids)
    low = (("torch", "float16", False), ("numpy", "float64", True))
    single = (("numpy", "float32", False), ("numpy", "float64", True))
    for framework, kind, fused in (
        ("torch", dtype, False),
        ("torch", dtype, True),
        ("jax", dtype, True),
        *(single if dtype == "float32" else low),
    ):
        function = port(config, weights, framework, kind, fused=fused)
        yield f"{framework} {kind} {fused=}", palm.compare(function, models["torch"], ids)


def faults() -> dict[str, Any]:
    """Of faults in bfloat16 ports with a real effect, what is said of them by their size."""
    rows = []
    for arch in ("torch", "jax"):
        for fields in ({}, {"init": "reference"}, {"depth": 4, "dim": 64}):
            config = palm.PaLMConfig(**{**SHAPE, **fields}).resolve(arch)
            weights = {k: w.astype(DTYPES["bfloat16"]) for k, w in weights_of(config, 3).items()}
            ids = np.random.default_rng(3).integers(0, config.num_tokens, 64)
            model = palm.from_numpy(config, weights, backend="torch")
            for framework in ("torch", "jax") if not fields else ("torch",):
                usual = palm.compare(port(config, weights, framework, "bfloat16"), model, ids).before
                for fault, positions in FAULTS.items():
                    if positions in (None, config.positions):
                        wrong = port(config, weights, framework, "bfloat16", fault)
                        found = palm.compare(wrong, model, ids)
                        cause = found.likenesses[0].detail if found.likenesses else ""
                        rows.append((fault, found.before / usual, found.outcome, cause))
                        print(arch, fields, framework, *rows[-1], flush=True)
    large = [row for row in rows if row[1] >= 3]
    small = [row for row in rows if 1.05 <= row[1] < 3]
    return {
        "3 times a right port's or more": dict(Counter(row[2] for row in large)),
        "of these named": sum(bool(row[3]) for row in large),
        "less": dict(Counter(row[2] for row in small)),
        "false agreements": [row for row in large if row[2] == "agree"],
    }


def main(which: list[str]) -> None:
    torch.set_num_threads(1)
    made = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name, run in (("right", right), ("faults", faults)):
        if not which or name in which:
            made[name] = run()
            print(json.dumps(made[name], indent=1, ensure_ascii=False))
            made["environment"] = environment()
            RESULTS.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
