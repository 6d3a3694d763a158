"""The figures of the parity grid: how near the wings are to the referee and to each other.

Float64: the largest relative rms error over every combination of the config's choices. Float32 and
bfloat16: the largest ratio, and the largest share of its bound that any value of either side uses.
Results go to benchmarks/results/parity.json with the machine they came from.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import jax
import numpy as np

import palm
from palm.data.windows import sample_windows, standard_library_text
from palm.parity.recording.recording import environment
from palm.spec import backward, forward
from palm.spec.initial import initial_weights
from palm.spec.rounding import rms

RESULTS = Path(__file__).parent / "results" / "parity.json"
CHOICES = {
    "positions": ("alibi", "rotary"),
    "norm": ("rmsnorm", "layernorm"),
    "share_kv": (True, False),
    "tie_embeddings": (True, False),
    "norm_eps_mode": ("clamp", "add"),
    "init": ("paper", "reference"),
}


def relative(values: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> float:
    return max(rms(values[name] - exact[name]) / rms(exact[name]) for name in exact)


def float64_figures() -> dict[str, float]:
    worst = dict.fromkeys(("logits, torch", "logits, jax", "gradients, torch", "gradients, jax"), 0.0)
    worst["gradients, torch against jax"] = 0.0
    for choices in itertools.product(*CHOICES.values()):
        config = palm.PaLMConfig(
            **{"num_tokens": 37, "dim": 20, "depth": 2, "heads": 3, "dim_head": 6, "ff_mult": 2},
            **dict(zip(CHOICES, choices, strict=True)),
        ).resolve("torch")
        tokens = np.random.default_rng(0).integers(0, config.num_tokens, (2, 11))
        weights = initial_weights(config, 0, "float64")
        logits = forward.activations(config, weights, tokens)["logits"]
        _, grads = backward.value_and_grad(config, weights, tokens)
        found = {}
        with jax.enable_x64(True):
            for backend in ("torch", "jax"):
                model = palm.from_numpy(config, weights, backend=backend)
                own = palm.activations(model, tokens)["logits"]
                _, found[backend] = palm.value_and_grad(model, tokens)
                for what, error in (
                    (f"logits, {backend}", relative({"": own}, {"": logits})),
                    (f"gradients, {backend}", relative(found[backend], grads)),
                ):
                    worst[what] = max(worst[what], error)
        cross = relative(found["torch"], found["jax"])
        worst["gradients, torch against jax"] = max(worst["gradients, torch against jax"], cross)
    return worst


def rounding_figures(dtype: palm.spec.parameters.DType) -> dict[str, float]:
    text = standard_library_text()
    worst = {"largest ratio": 0.0, "largest share of the bound": 0.0}
    for architecture in ("torch", "jax"):
        for name in ("tiny", "small"):
            config = palm.preset(name).resolve(architecture)
            tokens = sample_windows(text, config.num_tokens, batch=2, length=256, seed=0)
            models = [palm.build(config, backend=backend, dtype=dtype) for backend in ("torch", "jax")]
            comparison = palm.compare(*models, tokens)
            shares = [max(f.error_a / f.bound_a, f.error_b / f.bound_b) for f in comparison.findings]
            worst["largest ratio"] = max(worst["largest ratio"], *comparison.ratios.values())
            worst["largest share of the bound"] = max(worst["largest share of the bound"], *shares)
    return worst


def main() -> None:
    results = {"float64, 64 combinations": float64_figures()}
    for dtype in ("float32", "bfloat16"):
        results[f"{dtype}, tiny and small, both architectures"] = rounding_figures(dtype)
    for what, figures in results.items():
        for name, value in figures.items():
            print(f"{what}: {name}: {value:.3g}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"environment": environment(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
