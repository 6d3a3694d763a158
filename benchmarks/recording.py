"""What does it cost to record a model of a billion parameters, and how large is the bundle?

    python benchmarks/recording.py torch|jax [DEPTH]

Times, in one process, forward and backward passes as a user runs them (loss and gradients, no arrays copied
out) and the recording of an excerpt, alternately, after a first of each; prints the ratio of the medians of
what recording adds, and the bundle's size. Results go to benchmarks/results/recording_BACKEND.json.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import palm
from palm.data.windows import sample_windows, standard_library_text
from palm.parity.recording.bundle import write_bundle
from palm.parity.recording.excerpt import record_excerpt
from palm.parity.recording.recording import environment
from palm.spec.sizes import describe

RESULTS = Path(__file__).parent / "results"
REPEATS = 1


def forward_and_backward(model: object, backend: str, tokens: object) -> Callable[[], object]:
    """One pass of each, as training makes them."""
    if backend == "torch":
        import torch  # noqa: PLC0415 - one framework a process

        from palm.torch_impl import next_token_loss  # noqa: PLC0415

        ids = torch.as_tensor(tokens)
        leaves = list(model.parameters())
        return lambda: torch.autograd.grad(next_token_loss(model(ids), ids), leaves)
    import equinox as eqx  # noqa: PLC0415
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415

    from palm.jax_impl import next_token_loss  # noqa: PLC0415

    ids = jnp.asarray(tokens)
    step = eqx.filter_jit(eqx.filter_value_and_grad(lambda model, ids: next_token_loss(model(ids), ids)))
    return lambda: jax.block_until_ready(step(model, ids))


def main() -> None:
    backend, depth = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 17
    config = palm.preset("small", dim=2048, depth=depth, heads=16, dim_head=128).resolve("torch")
    tokens = sample_windows(standard_library_text(), config.num_tokens, batch=2, length=256, seed=0)
    model = palm.build(config, backend=backend)
    step = forward_and_backward(model, backend, tokens)
    times: dict[str, list[float]] = {"forward and backward": [], "recording": []}
    size = 0
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        step()
        times["forward and backward"].append(time.perf_counter() - start)
        start = time.perf_counter()
        excerpt = record_excerpt(model, tokens, seed=0)
        with tempfile.TemporaryDirectory() as folder:
            write_bundle(excerpt, Path(folder) / "bundle")
            times["recording"].append(time.perf_counter() - start)
            size = sum(file.stat().st_size for file in (Path(folder) / "bundle").iterdir())
        print({name: round(of[-1], 2) for name, of in times.items()}, flush=True)
    step_time, recording = (statistics.median(of[1:]) for of in times.values())
    results = {
        "parameters": describe(config, 256).total,
        "bundle_bytes": size,
        "seconds": times,
        "added_over_forward_and_backward": recording / step_time - 1,
    }
    print(
        f"{backend}, {results['parameters']:,} parameters: bundle {size / 2**20:.1f} MiB; recording takes "
        f"{recording:.1f} s, forward and backward {step_time:.1f} s, so it adds "
        f"{results['added_over_forward_and_backward']:.2f} of one"
    )
    file = RESULTS / f"recording_{backend}.json"
    file.write_text(json.dumps({"environment": environment(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
