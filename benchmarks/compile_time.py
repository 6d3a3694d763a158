"""Does the JAX wing's compile time grow with depth? 118 layers against 2, interleaved in one run.

Prints the median of each and the ratio of the medians, for the forward pass and for value and gradient;
the results go to benchmarks/results/compile_time.json with the machine they came from.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp

import palm
from palm.jax_impl import next_token_loss
from palm.parity.recording.recording import environment

DEPTHS = (118, 2)
REPEATS = 7
RESULTS = Path(__file__).parent / "results" / "compile_time.json"


def seconds_to_compile(depth: int, *, gradient: bool) -> float:
    """Trace, lower and compile from nothing; building the weights is not counted."""
    config = palm.PaLMConfig(num_tokens=256, dim=32, depth=depth, heads=2, dim_head=16)
    model = palm.build(config, backend="jax")
    tokens = jnp.zeros((1, 64), jnp.int32)

    def forward(model, tokens):
        return next_token_loss(model(tokens), tokens) if gradient else model(tokens)

    jax.clear_caches()
    start = time.perf_counter()
    jax.jit(jax.value_and_grad(forward) if gradient else forward).lower(model, tokens).compile()
    return time.perf_counter() - start


def main() -> None:
    results = {}
    for gradient in (False, True):
        times = {depth: [] for depth in DEPTHS}
        seconds_to_compile(DEPTHS[0], gradient=gradient)  # the first of a process pays for start-up
        for _ in range(REPEATS):
            for depth in DEPTHS:
                times[depth].append(seconds_to_compile(depth, gradient=gradient))
        deep, shallow = (statistics.median(times[depth]) for depth in DEPTHS)
        name = "value and gradient" if gradient else "forward"
        results[name] = {"seconds": times, "ratio_of_medians": deep / shallow}
        print(
            f"{name}: {DEPTHS[0]} layers {deep:.2f} s, {DEPTHS[1]} layers {shallow:.2f} s, "
            f"ratio {deep / shallow:.2f}"
        )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"environment": environment(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
