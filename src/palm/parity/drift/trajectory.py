"""Train one side and write down its way: loss, gradient norm and a sample of the weights after each step.

Letters: N steps, k one of them, m sampled weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from palm.backends import config_of, dtype_of, wing_of
from palm.config import PaLMConfig
from palm.data.windows import Corpus, windows
from palm.models import to_numpy
from palm.recipes import Recipe
from palm.spec.parameters import numpy_dtype, parameters
from palm.spec.random import generator

Arrays = dict[str, np.ndarray]

# How many weights are followed: enough for a norm to three digits. A long run follows fewer, for its file.
MOST_WEIGHTS, MOST_VALUES = 1 << 16, 1 << 26
_FILE, _WEIGHTS = "trajectory.json", "weights.npy"


@dataclass(frozen=True)
class Trajectory:
    """What one side was after k = 0 … N updates. Shapes: losses and norms (N + 1,), weights (N + 1, m).

    `losses[k]`, `grad_norms[k]`: of batch k + 1 on the weights after k updates. `parameters` is how many
    weights there are, of which `weights` holds the same m of every side, as they are.
    """

    losses: np.ndarray
    grad_norms: np.ndarray
    weights: np.ndarray = field(repr=False)
    parameters: int

    @property
    def first_not_finite(self) -> int | None:
        """The first k at which the loss or the gradient is not finite."""
        bad = ~(np.isfinite(self.losses) & np.isfinite(self.grad_norms))
        return int(np.argmax(bad)) if bad.any() else None


def record_training(
    model: Any,
    recipe: Recipe,
    corpus: Corpus,
    folder: Path,
    *,
    on_step: Callable[[str], None] = lambda step: None,
) -> Trajectory:
    """Train a live model as `recipe` says, from `windows` of the corpus, and record its way.

    One more step than `recipe.steps` is made: it is what measures loss and gradient after the last one that
    counts. The trajectory lies in `folder`. Raises `DataError` if the corpus is shorter than a window.
    """
    wing, config = wing_of(model), config_of(model)
    places = sample_places(config, recipe.steps, recipe.seed)
    shape = (recipe.steps + 1, sum(map(len, places.values())))
    folder.mkdir(parents=True, exist_ok=True)
    # On disk from the first step on: a long way does not fit into memory.
    kept = np.lib.format.open_memmap(folder / _WEIGHTS, "w+", numpy_dtype(dtype_of(model)), shape)
    losses, norms = [], []

    trainer = wing.Trainer(model, recipe)
    for k in range(recipe.steps + 1):
        arrays = to_numpy(trainer.model)
        kept[k] = np.concatenate([arrays[name].ravel()[at] for name, at in places.items()])
        rows = recipe.batch_at(k + 1)
        first = recipe.rows_before(k + 1)
        batch = windows(corpus, seed=recipe.seed, first=first, rows=rows, length=recipe.length)
        outcome = trainer.step(batch, recipe.rates(k + 1))
        losses.append(outcome.loss)
        norms.append(outcome.grad_norm)
        on_step(f"step {k}")
    kept.flush()
    count = sum(parameter.size for parameter in parameters(config).values())
    fields = {"losses": losses, "grad_norms": norms, "parameters": count}
    (folder / _FILE).write_text(json.dumps(fields), encoding="utf-8")
    return read_trajectory(folder)


def read_trajectory(folder: Path) -> Trajectory:
    """What `record_training` left in `folder`."""
    fields = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    return Trajectory(
        losses=np.array(fields["losses"], np.float64),
        grad_norms=np.array(fields["grad_norms"], np.float64),
        weights=np.load(folder / _WEIGHTS, mmap_mode="r", allow_pickle=False),
        parameters=fields["parameters"],
    )


def sample_places(config: PaLMConfig, steps: int, seed: int) -> Arrays:
    """Which weights are followed: indices into each flattened parameter, by name, ascending.

    At least one of each parameter, the others in proportion to size; all of them if the model has no more
    than `MOST_WEIGHTS` and the run no more than `MOST_VALUES` values.
    """
    table = parameters(config)
    total = sum(parameter.size for parameter in table.values())
    count = min(total, max(len(table), min(MOST_WEIGHTS, MOST_VALUES // (steps + 1))))
    places, before = {}, 0
    for name, parameter in table.items():
        after = before + parameter.size - 1
        spare, of = count - len(table), max(1, total - len(table))
        share = 1 + spare * after // of - spare * before // of
        chosen = generator(seed, f"sample/{name}").choice(parameter.size, share, replace=False)
        places[name], before = np.sort(chosen), after
    return places


def moved_by_an_ulp(weights: Mapping[str, np.ndarray], seed: int) -> Arrays:
    """Every element one unit in the last place up or down, as a coin that `seed` tosses falls."""
    moved = {}
    for name, array in weights.items():
        up = generator(seed, f"coin/{name}").integers(0, 2, array.shape, dtype=np.int8).astype(bool)
        far = np.where(up, np.inf, -np.inf).astype(array.dtype)
        moved[name] = np.nextafter(array, far)
    return moved
