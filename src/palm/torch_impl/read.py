"""What the instrument reads from a model on a mesh: the program of all processes, its values put together.

Letters: b batch, n sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from palm.recipes import Recipe, Remat
from palm.spec.mesh import Cut, ways
from palm.spec.parameters import dtype_name
from palm.spec.taps import kind_of
from palm.torch_impl.model import PaLM
from palm.torch_impl.sharded import Sharded

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def read_taps(model: PaLM, weight: DTensor, ids: np.ndarray) -> dict[str, Tensor]:
    """Every tap of a forward pass. Shapes: ids (b, n) -> (b, n, width)."""
    part = Sharded(model, weight, _recipe(weight, remat=False))
    taps = _Taps(part)
    part.forward(ids, taps.keep)
    return taps.found


def read_gradient(
    model: PaLM, weight: DTensor, ids: np.ndarray, remat: Remat
) -> tuple[float, dict[str, Tensor]]:
    """Mean next-token loss, and its gradient by the names of the state_dict. Shapes: ids (b, n)."""
    part = Sharded(model, weight, _recipe(weight, remat=remat))
    loss, grads = part.gradients(part.tokens(ids, 1))
    mean, _ = part.totals(loss, grads)
    return mean, part.placed(dict(zip(part.params, grads, strict=True)))


def _recipe(weight: DTensor, *, remat: Remat) -> Recipe:
    """What computes as the model itself does."""
    return Recipe(precision=dtype_name(weight.dtype), remat=remat, z_loss=0.0)


class _Taps:
    """Puts the parts of each tap together, in each process; the values themselves go on as parts."""

    def __init__(self, part: Sharded) -> None:
        heads, words, columns = (ways(part.config, part.on, axis) > 1 for axis in ("heads", "vocab", "ff"))
        self._place, self.found = part.place, dict[str, Tensor]()
        self._beside: dict[str, bool] = {
            "q": heads,
            "attention": heads,
            "feedforward": columns,
            "logits": words,
        }
        self._summed = {"attention_out": heads, "feedforward_out": columns}

    def keep(self, name: str, value: Tensor) -> Tensor:
        """A `Tap`."""
        kind, whole = kind_of(name), value.detach()
        if self._beside.get(kind):
            whole = self._joined(whole, "model", -1)
        elif self._summed.get(kind):
            whole = whole.clone()
            dist.all_reduce(whole, group=self._place.get_group("model"))
        for axis in ("data", "pod"):
            whole = self._joined(whole, axis, 0)
        self.found[name] = whole
        return value

    def _joined(self, part: Tensor, axis: Cut, dimension: int) -> Tensor:
        group = self._place.get_group(axis)
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, part.contiguous(), group=group)
        return torch.cat(parts, dimension)
