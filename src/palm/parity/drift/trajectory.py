"""Train one side and write down its way: loss and a sample of the weights after each step.

Letters: N steps, k one of them, m followed weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from palm.backends import config_of, dtype_of, wing_of
from palm.config import PaLMConfig
from palm.data.windows import Corpus, windows
from palm.errors import DataError, WeightsError
from palm.models import to_numpy
from palm.parity.drift.loop import Loop, Step, Weights, all_weights
from palm.parity.drift.state import kept
from palm.parity.drift.ulp import check_precision
from palm.recipes import Recipe
from palm.spec.parameters import numpy_dtype, parameters
from palm.spec.random import generator
from palm.spec.rounding import unit_roundoff

Arrays = dict[str, np.ndarray]

# How many weights are followed: enough for a norm to three digits. A long run follows fewer, for its file.
MOST_WEIGHTS, MOST_VALUES = 1 << 16, 1 << 26
_FILE, _WEIGHTS = "trajectory.json", "weights.npy"


@dataclass(frozen=True)
class Trajectory:
    """What one side was after k = 0 … N updates. `weights` has the shape (N + 1, m).

    `losses[k]`, `grad_norms[k]`: of batch k + 1 on the weights after k updates; shape (N,) or (N + 1,), and
    norms only of palm's own training. `parameters` is how many weights there are, of which `weights` holds
    the same m of every side. `shapes`: of the weights, by name, as the user names them. `stored`: the
    coarsest dtype of the weights, if it is not that of `weights`. `precision`: the dtype in which a step
    computes, if it is coarser. `seed`: it tosses the control's coins. `control`: the same loop from weights
    that are moved by one unit in the last place of `precision`.
    """

    losses: np.ndarray
    grad_norms: np.ndarray | None
    weights: np.ndarray = field(repr=False)
    parameters: int
    label: str = ""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    stored: str | None = None
    precision: str | None = None
    seed: int = 0
    control: Trajectory | None = field(default=None, repr=False)

    @classmethod
    def record(
        cls,
        step: Step,
        state: Any,
        batches: Iterable[Any],
        *,
        label: str,
        weights: Weights = all_weights,
        precision: str | None = None,
        seed: int = 0,
    ) -> Trajectory:
        """Run a training loop on `batches` and record it; then once more as its control.

        `step(state, batch)` makes one update and gives the new state and the loss, a number. A state is any
        pytree of arrays of JAX or NumPy, or what the step changes in place: a tuple of torch module and
        optimizer, say. All random numbers must come from the state or from the global generators. Afterwards
        the state is as before, and so are the generators.

        `weights(state)` gives a dict of the weights by name, in the names and the layout that both sides are
        to be compared in: there, transpose, split or rename. It must not compute with them. If it is not
        given, the weights are the parameters of the state's torch module, or all arrays of the state.

        `precision`: the dtype in which a step computes if that is coarser than its weights: "bfloat16" under
        autocast, "float16" also for TF32. Sides that are compared need one `seed`.

        Raises `WeightsError` if the state, the weights or the loss are not so, or if no step changes a
        weight; `DataError` without a batch; `ConfigError` for an unknown `precision` or a wrong `seed`.
        """
        check_precision(precision)
        loop, batches = Loop(label, step, weights), list(batches)
        if not batches:
            raise DataError(
                f"batches must hold at least one batch; got none for {label}. Pass a list of them."
            )
        start = loop.named(state)
        places = spread_places({name: array.size for name, array in start.items()}, len(batches), seed)
        stored = max((str(array.dtype) for array in start.values()), key=unit_roundoff)
        with kept(state):
            losses, rows = loop.follow(state, batches, places)
        with kept(state):
            control = loop.follow(loop.moved(state, seed, precision), batches, places)
        if all(np.array_equal(row, rows[0]) for row in rows[1:]):
            raise WeightsError(
                f"a step must change the weights; got the same after {len(batches)} steps of {label}. Return "
                "the new state, and let weights= read it from there."
            )

        def made(losses: list[float], rows: list[np.ndarray], control: Trajectory | None) -> Trajectory:
            count, shapes = (
                sum(array.size for array in start.values()),
                {n: a.shape for n, a in start.items()},
            )
            kind = np.result_type(np.float32, *(a.dtype for a in start.values() if a.dtype.kind == "f"))
            own = (label, shapes, stored, precision, seed, control)
            return cls(np.array(losses), None, np.stack(rows).astype(kind), count, *own)

        return made(losses, rows, made(*control, None))

    @property
    def unit(self) -> float:
        """Unit roundoff of the weights."""
        return unit_roundoff(self.stored or str(self.weights.dtype))

    @property
    def computed(self) -> float:
        """Unit roundoff of a step."""
        return max(self.unit, unit_roundoff(self.precision)) if self.precision else self.unit

    @property
    def first_not_finite(self) -> int | None:
        """The first k at which the loss, the gradient or a weight is not finite."""
        bad = ~np.isfinite(self.losses)
        if self.grad_norms is not None:
            bad |= ~np.isfinite(self.grad_norms)
        bad = [*bad, *[False] * (len(self.weights) - len(bad))]
        found = (k for k, row in enumerate(self.weights) if bad[k] or not np.isfinite(row).all())
        return next(found, None)


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
    """Which weights of a palm model are followed."""
    table = parameters(config)
    return spread_places({name: parameter.size for name, parameter in table.items()}, steps, seed)


def spread_places(sizes: Mapping[str, int], steps: int, seed: int) -> Arrays:
    """Which weights are followed: indices into each flattened parameter, by name, ascending.

    At least one of each parameter, the others in proportion to size; all of them if the model has no more
    than `MOST_WEIGHTS` and the run no more than `MOST_VALUES` values.
    """
    total = sum(sizes.values())
    count = min(total, max(len(sizes), min(MOST_WEIGHTS, MOST_VALUES // (steps + 1))))
    places, before = {}, 0
    for name, size in sizes.items():
        after = before + size - 1
        spare, of = count - len(sizes), max(1, total - len(sizes))
        share = 1 + spare * after // of - spare * before // of
        chosen = generator(seed, f"sample/{name}").choice(size, share, replace=False)
        places[name], before = np.sort(chosen), after
    return places
