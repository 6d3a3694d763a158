"""How long do the steps of a training wait for a checkpoint, written at once and behind the steps?

    python benchmarks/saving.py torch|jax [WIDTH]

Trains a model (of width 384: 76 MB of weights and moments) for forty steps, alternately in both ways, with a
checkpoint every tenth step. Prints the median seconds that a step waits: those between two steps that have a
checkpoint between them, less the median of those that have none. And how long it takes until the checkpoint
is whole.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import palm
from palm.data.windows import python_documentation_text
from palm.spec.sizes import describe
from palm.training.run_folder import Run

EVERY, STEPS, REPEATS = 10, 40, 2


def waits(backend: str, config: palm.PaLMConfig, folder: Path, *, behind: bool) -> tuple[list[float], float]:
    """The seconds that each checkpoint has cost between two steps, and the median step."""
    recipe = palm.recipe("adamw", steps=STEPS, batch=2, length=64, validation=0.0)
    cadence = palm.Cadence(checkpoint_every=EVERY, keep=2, save_behind=behind)
    ends: list[float] = []

    def on_step(entry: dict[str, Any]) -> None:
        ends.append(time.perf_counter())

    text = python_documentation_text()
    palm.train(config, recipe, text, backend=backend, out=folder, cadence=cadence, on_step=on_step)
    took = [after - before for before, after in itertools.pairwise(ends)]
    # took[k] is that of step k + 2; the last step waits in any case.
    with_save = [seconds for step, seconds in enumerate(took, 2) if step % EVERY == 0 and step < STEPS]
    plain = [seconds for step, seconds in enumerate(took, 2) if step % EVERY > EVERY // 2]
    usual = statistics.median(plain)
    assert max(Run(folder).checkpoints()) == STEPS
    return [seconds - usual for seconds in with_save], usual


def main() -> None:
    backend, width = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 384
    config = palm.preset("tiny", dim=width, depth=3, heads=8, dim_head=width // 8).resolve("torch")
    total = describe(config).total
    print(f"{total:,} parameters, {12 * total / 1e6:.0f} MB of weights and moments, {backend}")
    found: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(REPEATS):
            for behind in (False, True):
                seconds, usual = waits(backend, config, Path(folder) / f"{repeat}-{behind}", behind=behind)
                found[behind] += seconds
                told = ", ".join(f"{second:.2f}" for second in seconds)
                print(f"save_behind={behind}: step {usual:.2f} s; waited {told} s", flush=True)
    at_once, behind_it = (statistics.median(found[behind]) for behind in (False, True))
    print(f"median wait: at once {at_once:.2f} s, behind the steps {behind_it:.2f} s")


if __name__ == "__main__":
    main()
