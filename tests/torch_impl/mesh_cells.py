"""One process of a mesh: trains small models on it and on one device, and prints how far apart they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import palm
from palm.spec.initial import initial_value
from palm.spec.mesh import mesh_of
from palm.spec.parameters import numpy_dtype
from palm.spec.rounding import rms, rounding_bound, rounding_ratio
from palm.torch_impl import Linear, Trainer, cut, device_mesh, from_arrays, is_first, loss, mesh_of_model
from palm.torch_impl import to_arrays as arrays_of
from palm.torch_impl.cut import CutPaLM, SpreadHeadNorm, SpreadLinear
from palm.torch_impl.norm import HeadNorm
from palm.torch_impl.sharded import Sharded

STEPS = 5
GRADIENTS = "first."  # AdamW's first moment after one step is a multiple of the gradient


def build(config: palm.PaLMConfig, dtype: str, device: Any) -> Any:
    """The model, with norm scales around one; all weights are numbers of bfloat16."""

    def fetch(parameter: Any) -> np.ndarray:
        array = initial_value(parameter, 0, "bfloat16")
        if parameter.std is None:
            array = array * np.random.default_rng(len(parameter.name)).uniform(0.5, 1.5, parameter.shape)
            array = array.astype(numpy_dtype("bfloat16"))
        return array.astype(numpy_dtype(dtype))

    return from_arrays(config, fetch, dtype=dtype, device=device, attention="blockwise")


def windows_of(config: palm.PaLMConfig, recipe: palm.Recipe) -> np.ndarray:
    shape = STEPS, recipe.batch, recipe.length + 1
    return np.random.default_rng(0).integers(0, config.num_tokens, shape)


def trained(config: palm.PaLMConfig, recipe: palm.Recipe, device: Any, dtype: str) -> dict[str, Any]:
    """Each step's numbers, validation losses, a gradient, and weights and moments at the end."""
    trainer = Trainer(build(config, dtype, device), recipe)
    numbers = []
    for step, windows in enumerate(windows_of(config, recipe), 1):
        outcome = trainer.step(windows, recipe.rates(step))
        numbers += [outcome.loss, outcome.grad_norm]
        if step == 1:
            gradients = trainer.moments()
        if step == 2:  # which some processes have one more of, or none
            numbers += [trainer.evaluate(windows[:5]), trainer.evaluate(windows[:1])]
    state = {**arrays_of(trainer.model), **trainer.moments()}
    numbers.append(trainer.evaluate(windows))
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.mul_(0.5)
    numbers.append(trainer.evaluate(windows))
    return {"trainer": trainer, "numbers": numbers, "gradients": gradients, "state": state}


def apart(a: Any, b: Any) -> float:
    """The largest difference, relative to the scale of b."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return float(np.abs(a - b).max() / (np.abs(b).max() or 1.0))


def share_of_state(trainer: Trainer) -> float:
    """Which part of weights and moments this process has."""
    model: Any = trainer.model
    local = sum(p.to_local().untyped_storage().nbytes() for p in model.parameters())
    held = sum(t.nbytes for moment in trainer._moments.values() for t in moment.values())
    return (local + held) / (3 * sum(p.numel() * p.element_size() for p in model.parameters()))


def ratio_and_bound(
    found: dict[str, Any], alone: dict[str, Any], wide: tuple[dict[str, Any], dict[str, Any]], bound: float
) -> tuple[float, float]:
    """The largest rounding ratio of any gradient, and the largest error, in parts of what is allowed."""
    ratios, shares = [], []
    learnt = [name for name in found if name.startswith(GRADIENTS) and np.any(wide[1][name])]
    for name in learnt:
        ours, one, our_wide, one_wide = (
            np.asarray(arrays[name], np.float64) for arrays in (found, alone, *wide)
        )
        ratios.append(rounding_ratio(rms(ours - one), rms(ours - our_wide), rms(one - one_wide)))
        shares.append(rms(ours - one_wide) / rms(one_wide) / bound)
    return max(ratios), max(shares)


def compared(cell: dict[str, Any]) -> dict[str, Any] | None:
    """What the first process finds; the others take part in the mesh alone."""
    config = palm.PaLMConfig(**cell["config"]).resolve("torch")
    precision = cell.get("precision", "float64")
    dtype = "float64" if precision == "float64" else "float32"
    settings = {"batch": 8, "length": 12, "steps": 20, "warmup": 2, "learning_rate": 2e-2}
    recipe = palm.recipe("adamw", **{**settings, "precision": precision, **cell["recipe"]})
    wide = palm.recipe("adamw", **{**settings, "precision": "float64", **cell["recipe"]})
    loss.MOST_LOGITS = cell.get("most_logits", 1 << 25)
    mesh = mesh_of(cell["mesh"])
    changed = CONTROLS[cell["control"]]() if "control" in cell else nullcontext()
    with changed, compiled() if cell.get("compiled") else nullcontext():
        found = trained(config, recipe, device_mesh(mesh), dtype)
    trainer = found["trainer"]
    assert mesh_of_model(trainer.model) == mesh
    result = {}
    if dtype == "float32":
        our_wide = trained(config, wide, device_mesh(mesh), "float64")["gradients"]
    if is_first():
        alone = trained(config, recipe, "cpu", dtype)
        state = {name: apart(array, alone["state"][name]) for name, array in found["state"].items()}
        numbers = [abs(a - b) / abs(b) for a, b in zip(found["numbers"], alone["numbers"], strict=True)]
        result = {"numbers": max(numbers), "state": max(state.values()), "share": share_of_state(trainer)}
        if dtype == "float32":
            one_wide = trained(config, wide, "cpu", "float64")["gradients"]
            rows = recipe.batch * recipe.length + config.num_tokens
            bound = rounding_bound(config, precision, rows, 2 * config.depth)
            given = found["gradients"], alone["gradients"], (our_wide, one_wide), bound
            result["ratio"], result["bound"] = ratio_and_bound(*given)
    return result


@contextmanager
def compiled() -> Iterator[None]:
    """Blocks are compiled, as on a GPU, up to the compiler of their kernels."""
    by_trace = partial(torch.compile, backend="aot_eager")
    with patch.object(Sharded, "_is_compiled", lambda self: True), patch.object(torch, "compile", by_trace):
        yield


def _tokens_of_the_first(program: Sharded, windows: np.ndarray, micros: int) -> torch.Tensor:
    with patch.object(Sharded, "_replica", lambda self: 0):
        return TOKENS(program, windows, micros)


def _own_sizes(program: Sharded) -> list[torch.Tensor]:
    return [torch.linalg.vector_norm(p) * p.numel() ** -0.5 for p in program.learnt.values()]


def _but_words(x: torch.Tensor, group: Any) -> torch.Tensor:
    return x if len(x) == 13 else SPREAD(x, group)  # the output matrix of as many tokens


def _slopes_of_all(model: CutPaLM, length: int, x: torch.Tensor) -> Any:
    with patch.object(model, "_rank", 0):
        return POSITIONS(model, length, x)


TOKENS, POSITIONS, SPREAD = Sharded.tokens, CutPaLM.positions, cut.spread
# Each thing that must be done on a mesh, left undone.
CONTROLS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "keys whose gradient is of one process's heads": partial(
        patch.object, SpreadLinear, "forward", Linear.forward
    ),
    "words whose gradient is of one process's part": partial(patch, "palm.torch_impl.cut.spread", _but_words),
    "head norms whose gradient is of one process's heads": partial(
        patch.object, SpreadHeadNorm, "forward", HeadNorm.forward
    ),
    "each process learns from the same rows": partial(patch.object, Sharded, "tokens", _tokens_of_the_first),
    "Adafactor scales by a piece": partial(patch.object, Sharded, "sizes", _own_sizes),
    "a whole tensor counts once for each process": partial(
        patch.object, Sharded, "_copies", lambda self, cut: 1
    ),
    "all processes have the slopes of the first": partial(patch.object, CutPaLM, "positions", _slopes_of_all),
    "gradients of whole tensors are left unsummed": partial(
        patch, "palm.torch_impl.sharded.summed", lambda x, mesh, axis: x
    ),
    "weights stay gathered after a validation": partial(patch.object, Sharded, "_reshard", lambda self: None),
    "narrow copies stay as they were": partial(patch.object, Sharded, "_follow", lambda self: None),
    "each process has the loss of its own vocabulary": partial(
        patch.object,
        CutPaLM,
        "entropy",
        lambda self, logits, targets, masked=False: loss.cross_entropy(logits, targets % logits.shape[-1]),
    ),
}


def main(cells: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    torch.set_num_threads(1)
    return [compared(cell) for cell in cells]
