"""Right programs that must raise no alarm, and faults in bfloat16 that must not pass as rounding.

Right runs: palm's wings against each other, and ports in NumPy, PyTorch and JAX, with weights that amplify
rounding. `right`, `faults` or both as arguments. Each run is written to a log at once; a run that was
interrupted goes on from there. The summary goes to benchmarks/results/alarms.json, and the log is removed.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from foreign_ports import FAULTS, port

import palm
from palm.parity.recording.recording import environment
from palm.spec.initial import initial_value
from palm.spec.parameters import DTYPES, parameters

RESULTS = Path(__file__).parent / "results" / "alarms.json"
LOG = "alarms_{}.jsonl"
# What is asked: so many runs at least, of which at most so many leave it open, and so many faults.
RUNS, OPEN, FAULTY = 400, 0.03, 100
# A fault is to be seen where it is so many times as far off as a right port.
LARGE, NONE = 3.0, 1.05
# Means of so many standard deviations ask for a LayerNorm in float32.
MEAN = 5.0
SHAPE: dict[str, Any] = {"num_tokens": 96, "dim": 48, "depth": 2, "heads": 4, "dim_head": 16, "ff_mult": 2}
Weights = dict[str, np.ndarray]
Row = dict[str, Any]


def weights_of(config: palm.PaLMConfig, seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    return {
        name: initial_value(one, seed, "float64", "whole")
        if one.std
        else 1 + 0.2 * rng.standard_normal(one.shape)
        for name, one in parameters(config).items()
    }


def scaled(weights: Weights, change: Any) -> None:
    for name, weight in weights.items():
        if name.endswith("norm"):
            change(weight)


def train(config: palm.PaLMConfig, weights: Weights) -> None:
    """Train on a text in which an id is followed by one of three."""
    text = np.cumsum(np.random.default_rng(0).choice([1, 5, 17], 20_000)) % config.num_tokens
    recipe = palm.Recipe(steps=100, batch=8, length=32, learning_rate=1e-2, warmup=10)
    start = {name: weight.astype(np.float32) for name, weight in weights.items()}
    weights.update(palm.to_numpy(palm.train(config, recipe, text, backend="torch", weights=start).model))


def regimes() -> Iterator[tuple[str, dict[str, Any], Any, int]]:
    """What the weights are like: a name, fields of the config, a change of the weights, how many tokens."""
    rng = np.random.default_rng(0)

    def mean(size: float) -> Any:
        return lambda c, w: w.update(embedding=w["embedding"] + size * w["embedding"].std())

    def channels(c: Any, w: Weights) -> None:
        scaled(w, lambda g: np.multiply(g[:2], 30, out=g[:2]))

    def wide(c: Any, w: Weights) -> None:
        scaled(w, lambda g: np.copyto(g, np.exp(rng.uniform(np.log(0.01), np.log(20), g.shape))))

    def spectra(c: Any, w: Weights) -> None:
        """Few large singular values and rows of many sizes, as long training makes them."""
        for name, weight in w.items():
            if weight.ndim == 2:
                u, s, v = np.linalg.svd(weight, full_matrices=False)
                w[name] = u * (s.max() * np.arange(1, s.size + 1) ** -0.7) @ v
        w["embedding"] *= np.exp(0.5 * rng.standard_normal((len(w["embedding"]), 1)))

    def as_drawn(c: Any, w: Weights) -> None:
        pass

    yield "fresh", {}, as_drawn, 64
    for size in (10, 50, 100):
        yield f"embedding + {size}σ", {}, mean(size), 64
    yield "embedding + 20", {"init": "reference"}, lambda c, w: w.update(embedding=w["embedding"] + 20), 64
    yield "two channels × 30", {}, channels, 64
    yield "norm scales 0.01 to 20", {}, wide, 64
    yield "trained 100 steps", {}, train, 64
    yield "few large singular values", {}, spectra, 64
    yield "depth 24", {"depth": 24}, as_drawn, 32
    yield "1,500 tokens", {"heads": 2, "dim_head": 8}, as_drawn, 1500
    for heads in (1, 7, 20):
        yield f"{heads} heads", {"heads": heads, "dim_head": 4}, as_drawn, 64
    for width in (4, 6, 128):
        yield f"dim_head {width}", {"dim_head": width, "heads": 2}, as_drawn, 64
    yield "vocabulary 5", {"num_tokens": 5}, as_drawn, 64


class Log:
    """Rows of one part, each on disk as soon as it is known; those of an interrupted run are there."""

    def __init__(self, part: str) -> None:
        self.path = RESULTS.with_name(LOG.format(part))
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.rows: dict[str, Row] = {row["run"]: row for row in map(json.loads, lines)}

    def add(self, run: str, measure: Callable[[], Row]) -> Row:
        """The row of `run`, measured unless it is there."""
        if run not in self.rows:
            start = time.time()
            self.rows[run] = {"run": run, **measure(), "seconds": round(time.time() - start, 1)}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.rows[run], ensure_ascii=False) + "\n")
            print(*self.rows[run].values(), flush=True)
        return self.rows[run]


def right(log: Log) -> Row:
    """Counts of the outcomes; what is told where they do not agree."""
    for name, fields, change, length in regimes():
        for arch, init, seed in (("torch", "paper", 0), ("jax", "reference", 1)):
            config = palm.PaLMConfig(**{**SHAPE, "init": init, **fields}).resolve(arch)
            wide = weights_of(config, seed)
            change(config, wide)
            ids = np.random.default_rng(seed).integers(0, config.num_tokens, length)
            for dtype in ("float32", "bfloat16"):
                weights = {key: weight.astype(DTYPES[dtype]) for key, weight in wide.items()}
                for label, compare in pairs(config, weights, ids, dtype):
                    log.add(f"{name}, {arch}, {dtype}, {label}", partial(outcome, compare))
        jax.clear_caches()
    rows = list(log.rows.values())
    counts = Counter(row["outcome"] for row in rows)
    alarms = len(rows) - counts["agree"] - counts["cannot tell"]
    return {
        "runs": len(rows),
        "of these ports in float64 or float16": sum(
            " float64 " in row["run"] or " float16" in row["run"] for row in rows
        ),
        "outcomes": dict(counts),
        "false alarms": alarms,
        "told": [f"{row['run']}: {row['verdict']}" for row in rows if row["outcome"] != "agree"],
        "largest distance over need": max(row["over_need"] or 0 for row in rows if row["outcome"] == "agree"),
        "met": len(rows) >= RUNS and not alarms and counts["cannot tell"] <= OPEN * len(rows),
    }


def outcome(compare: Callable[[], Any]) -> Row:
    found = compare()
    need = getattr(found, "need", 0)
    return {
        "outcome": found.outcome,
        "verdict": "" if found.agree else found.verdict,
        "over_need": found.before / need if need > 0 else None,
    }


def pairs(
    config: palm.PaLMConfig, weights: Weights, ids: np.ndarray, dtype: str
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The wings against each other, and every port against one of them."""
    models = {wing: palm.from_numpy(config, weights, backend=wing) for wing in ("torch", "jax")}
    yield "wings", lambda: palm.compare(models["torch"], models["jax"], ids)
    styles = [("torch", dtype, {}), ("jax", dtype, {"fused": True}), ("numpy", dtype, {})]
    styles += [("numpy", "float64", {"fused": True})]
    if dtype == "float32":
        styles += [("torch", dtype, {"fused": True}), ("numpy", dtype, {"fused": True})]
    else:
        styles += [("torch", "float16", {})]
        if config.norm != "layernorm" or not has_a_mean(weights["embedding"]):
            styles += [("torch", dtype, {"upcast": False}), ("numpy", dtype, {"upcast": False})]
    for framework, kind, style in styles:
        function = port(config, weights, framework, kind, **style)
        label = " ".join((framework, kind, *(f"{key}={value}" for key, value in style.items())))
        yield label, partial(palm.compare, function, models["torch"], ids)


def has_a_mean(embedding: np.ndarray) -> bool:
    """Whether a LayerNorm in bfloat16 is a fault: it rounds the mean that it subtracts, which is many σ."""
    rows = embedding.astype(np.float64)
    return bool(np.median(np.abs(rows.mean(-1)) - MEAN * rows.std(-1)) > 0)


def faults(log: Log) -> Row:
    """Of faults in bfloat16 ports with a real effect, what is said of them by their size."""
    every, one = ("torch", "jax", "numpy"), ("torch",)
    for arch in ("torch", "jax"):
        for name, fields, frameworks in (
            ("fresh", {}, every),
            ("trained", {}, one),
            ("reference", {"init": "reference"}, one),
            ("depth 4", {"depth": 4, "dim": 64}, one),
        ):
            config = palm.PaLMConfig(**{**SHAPE, **fields}).resolve(arch)
            wide = weights_of(config, 3)
            if name == "trained":
                train(config, wide)
            weights = {k: w.astype(DTYPES["bfloat16"]) for k, w in wide.items()}
            for framework in frameworks:
                faults_of(log, f"{name}, {arch}, {framework}", config, weights, framework)
        jax.clear_caches()
    return told_of_faults([row for row in log.rows.values() if "times" in row])


def faults_of(log: Log, group: str, config: palm.PaLMConfig, weights: Weights, framework: str) -> None:
    """All faults of one port; `times`: how many times as far off as the right one."""
    ids = np.random.default_rng(3).integers(0, config.num_tokens, 64)
    model = palm.from_numpy(config, weights, backend="torch")

    def measured(fault: str) -> Row:
        found = palm.compare(port(config, weights, framework, "bfloat16", fault), model, ids)
        cause = found.likenesses[0].detail if found.likenesses else ""
        return {"distance": found.before, "outcome": found.outcome, "cause": cause}

    usual = log.add(f"{group}, right", partial(measured, ""))["distance"]
    for fault, positions in FAULTS.items():
        if positions in (None, config.positions):
            row = log.add(f"{group}, {fault}", partial(measured, fault))
            row["times"] = row["distance"] / usual


def told_of_faults(rows: list[Row]) -> Row:
    large = [row for row in rows if row["times"] >= LARGE]
    small = [row for row in rows if NONE <= row["times"] < LARGE]
    agreed = [row["run"] for row in large if row["outcome"] == "agree"]
    return {
        "3 times a right port's or more": dict(Counter(row["outcome"] for row in large)),
        "of these named": sum(bool(row["cause"]) for row in large),
        "less": dict(Counter(row["outcome"] for row in small)),
        "false agreements": agreed,
        "met": len(large) >= FAULTY and not agreed,
    }


def main(which: list[str]) -> int:
    torch.set_num_threads(1)
    made = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    parts = {name: run for name, run in (("right", right), ("faults", faults)) if not which or name in which}
    for name, run in parts.items():
        log = Log(name)
        made[name] = run(log)
        print(json.dumps(made[name], indent=1, ensure_ascii=False))
        made["environment"] = environment()
        RESULTS.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        log.path.unlink(missing_ok=True)
    return int(not all(made[name]["met"] for name in parts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
