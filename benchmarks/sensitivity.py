"""The smallest fault that palm.compare sees, and the smallest that it calls by its name.

One torch side is made wrong by a growing amount, a right JAX side stands against it. Results go to
benchmarks/results/sensitivity.json with the machine they came from, and to docs/sensitivity.svg.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import numpy as np
import torch
from matplotlib.figure import Figure

import palm
from palm.data.windows import sample_windows, standard_library_text
from palm.parity.recording.recording import Recording, environment, record
from palm.spec.rounding import RATIO_BAR
from palm.torch_impl.model import PaLM
from palm.torch_impl.paths import ATTENTION
from palm.torch_impl.position import alibi_slopes, rotation_tables

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "sensitivity.json"
PLOT = HERE.parent / "docs" / "sensitivity.svg"
DTYPES = ("float64", "float32", "bfloat16")
# Relative sizes, three a decade; eps from 1e-8 on.
SIZES = [float(f"{digit}e{power}") for power in range(-15, 0) for digit in (1, 2, 5)] + [1.0]
EPS = [1e-8 * (1 + size) for size in SIZES[:-1:3]] + [
    float(f"{digit}e{power}") for power in range(-8, -1) for digit in (1, 2, 5)
][1:]
# One weight is one of many thousands.
WEIGHT = [*SIZES, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]
SHAPE = {"num_tokens": 256, "dim": 128, "depth": 4, "heads": 4, "dim_head": 32}
BLOCK = 2

# Makes a torch model wrong by so much.
Change = Callable[[Any, float], None]


def other_eps(model: Any, eps: float) -> None:
    config = dataclasses.replace(model.config, norm_eps=eps)
    for norm in (model.norm, *(block.norm for block in model.blocks)):
        norm.config = config


def other_theta(model: Any, size: float) -> None:
    config = dataclasses.replace(model.config, rope_theta=model.config.rope_theta * (1 + size))

    def positions(_: PaLM, length: int, x: torch.Tensor) -> tuple[Any, None]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        return rotation_tables(config, length, device=x.device, dtype=dtype), None

    PaLM.positions = positions  # type: ignore[method-assign]


def other_slopes(model: Any, size: float) -> None:
    def positions(_: PaLM, length: int, x: torch.Tensor) -> tuple[None, torch.Tensor]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        return None, alibi_slopes(model.config, device=x.device, dtype=dtype) * (1 + size)

    PaLM.positions = positions  # type: ignore[method-assign]


def moved_weight(model: Any, size: float) -> None:
    weight = model.blocks[BLOCK].feedforward.down.weight
    # One of ordinary size, which differs from the mean square by least.
    typical = (weight.detach().float().square() - weight.detach().float().square().mean()).abs().argmin()
    with torch.no_grad():
        weight.view(-1)[typical] *= 1 + size


def other_scale(model: Any, size: float) -> None:
    def scaled(q: torch.Tensor, *others: torch.Tensor | None) -> torch.Tensor:
        return ATTENTION["blockwise"](q * (1 + size), *others)

    ATTENTION["scaled"] = scaled
    for block in model.blocks:
        block.attention.path = "scaled"


# what -> (architecture, its change, sizes, what palm must call it)
FAULTS: dict[str, tuple[dict[str, Any], Change, list[float], str]] = {
    "eps, embeddings of std 1": ({"positions": "rotary", "init": "paper"}, other_eps, EPS, "eps"),
    "eps, embeddings of std 0.02": ({"positions": "rotary", "init": "reference"}, other_eps, EPS, "eps"),
    "rotary θ": ({"positions": "rotary"}, other_theta, SIZES, "rotary θ"),
    "ALiBi slopes": ({"positions": "alibi"}, other_slopes, SIZES, "ALiBi slopes"),
    "query scale": ({"positions": "rotary"}, other_scale, SIZES, "query scale"),
    # The side says that it has the right weights, and computes with others.
    "one weight, arrays alike": ({"positions": "rotary"}, moved_weight, WEIGHT, "unknown"),
    "one weight": ({"positions": "rotary"}, moved_weight, WEIGHT, "different weights"),
}


def recordings(what: str, dtype: Any) -> tuple[Any, Recording, np.ndarray]:
    """A right torch model, the recording of a right JAX one, and the tokens of both."""
    choices = FAULTS[what][0]
    config = palm.PaLMConfig(
        **{**SHAPE, "norm": "rmsnorm", "norm_eps_mode": "add", "norm_eps": 1e-8, **choices}
    ).resolve("torch")
    text = standard_library_text()
    tokens = sample_windows(text, config.num_tokens, batch=2, length=64, seed=0)
    with jax.enable_x64(dtype == "float64"):
        right = record(palm.build(config, backend="jax", dtype=dtype), tokens)
    return palm.build(config, backend="torch", dtype=dtype), right, tokens


def measure(what: str, dtype: str) -> list[dict[str, Any]]:
    """For each size: whether the sides are said to differ, where first, and what the fault is called."""
    _, change, sizes, cause = FAULTS[what]
    model, right, tokens = recordings(what, dtype)
    told = []
    for size in [0.0, *sizes]:
        wrong = copy.deepcopy(model)
        with patch.object(PaLM, "positions", PaLM.positions):  # some changes are of the class
            if size:
                change(wrong, size)
            side = record(wrong, tokens)
        if what.endswith("alike"):
            side = dataclasses.replace(side, weights=right.weights)
        found = palm.compare(right, side)
        named = [one for one in found.diagnoses if one.cause == cause and one.side == "torch"]
        told.append(
            {
                "size": size,
                "differs": not found.agree,
                "differs in working precision": max(found.ratios.values()) > RATIO_BAR,
                "first": found.first_divergence,
                "named": bool(named),
                "place": bool(found.diagnoses) and found.diagnoses[0].side == "torch",
                "told": named[0].detail if named else "",
                "largest ratio": max(found.ratios.values()),
            }
        )
    assert not told[0]["differs"], "the right sides differ"
    return told


def threshold(told: list[dict[str, Any]], what: str) -> float | None:
    """The smallest size from which on all are found."""
    missed = [i for i, one in enumerate(told) if not one[what]]
    return told[missed[-1] + 1]["size"] if missed[-1] + 1 < len(told) else None


def draw(results: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """The largest ratio against the size of the fault; a ring where it is called by its name first."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    for column, dtype in enumerate(DTYPES):
        axes = figure.add_subplot(1, 3, column + 1)
        for what, by_dtype in results.items():
            told = [one for one in by_dtype[dtype] if one["size"]]
            [curve] = axes.loglog(
                [one["size"] for one in told], [one["largest ratio"] for one in told], label=what
            )
            first = threshold(by_dtype[dtype], "named")
            for one in told:
                if one["size"] == first:
                    axes.plot(first, one["largest ratio"], "o", mfc="none", color=curve.get_color())
        axes.axhline(1.5, color="black", linewidth=0.8, linestyle=":")
        axes.set(title=dtype, xlabel="size of the fault (eps: itself)", ylabel="largest ratio")
        axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="x-small")
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for what in FAULTS:
        results[what] = {dtype: measure(what, dtype) for dtype in DTYPES}
        for dtype, told in results[what].items():
            seen = {how: threshold(told, how) for how in ("differs in working precision", "differs", "named")}
            print(f"{what}, {dtype}: {seen}", flush=True)
    draw(results)
    RESULTS.write_text(
        json.dumps({"environment": environment(), "shape": SHAPE, "results": results}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
