"""A torch model on a mesh with one fault of the processes, compared with one on one device: in a process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist

import palm
from palm.parity.recording.recording import record
from palm.torch_impl import cut, sharded

CONFIG = palm.PaLMConfig(num_tokens=32, dim=16, depth=3, heads=4, dim_head=4)


def own_part(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
    """Each process keeps its part of the gradient of keys and values."""
    is_weight = grad.ndim == 2
    return grad if is_weight else cut._sum(grad, ctx.group), None


def first_slopes(self: Any, length: int, x: torch.Tensor) -> Any:
    """Each process has the slopes of the first one's heads."""
    rotation, slopes = super(cut.CutPaLM, self).positions(length, x)
    return rotation, None if slopes is None else slopes[: len(slopes) // self._parts]


def totals(wrong: Callable[[str, torch.Tensor], None]) -> Any:
    right = sharded.Sharded.totals

    def changed(self: Any, loss: torch.Tensor, grads: list[torch.Tensor]) -> Any:
        if wrong is unsummed:
            with patch.object(sharded, "summed", lambda x, *_: x):
                return right(self, loss, grads)
        found = right(self, loss, grads)
        for name, grad in zip(self.params, grads, strict=True):
            wrong(name, grad)
        return found

    return changed


def unsummed(name: str, grad: torch.Tensor) -> None:
    """Norm scales and what else is whole are not summed over the batch."""


def twice(name: str, grad: torch.Tensor) -> None:
    """Norm scales are summed over all processes once more."""
    if name.endswith("norm.weight"):
        dist.all_reduce(grad)


FAULTS: dict[str, tuple[str, Any, str, Any]] = {
    "none": ("data=2", cut, "__doc__", cut.__doc__),
    "none, model": ("model=2", cut, "__doc__", cut.__doc__),
    "k/v gradients partial": ("model=2", cut._Spread, "backward", staticmethod(own_part)),
    "slopes of other heads": ("model=2", cut.CutPaLM, "positions", first_slopes),
    "gradient not summed": ("data=2", sharded.Sharded, "totals", totals(unsummed)),
    "gradient summed twice": ("data=2", sharded.Sharded, "totals", totals(twice)),
}


def main(names: list[str]) -> dict[str, Any]:
    ids = np.random.default_rng(0).integers(0, 32, (4, 12))
    config = CONFIG.resolve("torch")
    right = record(palm.build(config, backend="torch", seed=1), ids, label="one device")
    told = {}
    for name in names:
        mesh, owner, attribute, wrong = FAULTS[name]
        model = palm.build(config, backend="torch", seed=1, mesh=mesh)
        with patch.object(owner, attribute, wrong):
            side = record(model, ids, label="mesh")
        found = palm.compare(right, side)
        told[name] = {
            "outcome": found.outcome,
            "first": found.first_divergence,
            "causes": [[one.side, one.cause, one.sentence] for one in found.diagnoses],
        }
    return told
