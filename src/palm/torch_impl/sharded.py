"""The training program of one process of a mesh: FSDP2 along `data`, tensor parallelism along `model`.

The model's DTensors are the master copy. FSDP's sharded parameters are the same memory, so that a step which
changes one changes the other; what FSDP does not share out is reduced here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from palm.recipes import Recipe
from palm.spec.boxes import Rows
from palm.spec.mesh import BATCH, Cut, check_batch, cuts
from palm.spec.parameters import Parameter, frozen
from palm.spec.taps import Tap, untapped
from palm.spec.tokens import IGNORED, check_tokens
from palm.torch_impl.cut import CutPaLM
from palm.torch_impl.linear import linear
from palm.torch_impl.loss import cross_entropy, output_loss, packed
from palm.torch_impl.model import PaLM
from palm.torch_impl.norm import HeadNorm, Norm
from palm.torch_impl.pieces import mesh_of_processes, own_part, placed, stored_cuts, summed
from palm.torch_impl.processes import together

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


class Sharded:
    """One process's part of a model on a mesh, its loss and its gradients.

    `params` are this process's pieces of the weights, by their names in the state_dict; `learnt` are those of
    them that are not frozen.
    """

    def __init__(self, model: PaLM, weight: DTensor, recipe: Recipe) -> None:
        self.place = weight.device_mesh
        self._model, self._recipe, self.config = model, recipe, model.config
        self.on = mesh_of_processes(self.place)
        self._device, self._wide = weight.to_local().device, weight.dtype
        self._compute = getattr(torch, recipe.precision)
        self._cuts = {
            f"{name}.weight": cut for name, cut in stored_cuts(model, model.config, self.place).items()
        }
        self.params = {name: _local(model.get_parameter(name).detach()) for name in self._cuts}
        names = frozen(model.config, recipe.freeze)
        self.learnt = {n: p for n, p in self.params.items() if n.removesuffix(".weight") not in names}
        self._root = _Objective(_part_of(model, self.place), recipe)
        by_fsdp = self._put_weights()
        if self._is_compiled():
            for block in self._root.model.blocks:
                block.forward = torch.compile(block.forward)  # inside of FSDP's hooks, which are not compiled
        if by_fsdp:
            self._shard(by_fsdp)
        self._leaves = {name: self._root.model.get_parameter(name) for name in self._cuts}
        copies = [self._copies(self._cuts[name]) for name in self.learnt]
        self._weights = torch.tensor(copies, device=self._device, dtype=torch.float64).reciprocal()

    def enter_thread(self) -> None:
        """Each thread has a current device of its own."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def tokens(self, windows: Rows, micros: int) -> Tensor:
        """This process's rows of windows (b, n + 1), those of each micro-batch in turn. No others are read.

        Of an array all are checked, so that ids that one process cannot take stop all.
        """
        count = windows.shape[0]
        check_batch(count, micros, self.on)
        if isinstance(windows, np.ndarray):
            check_tokens(windows, self._model.config)
        own = count // (micros * self.on.replicas)
        firsts = range(self._replica() * own, count, self.on.replicas * own)
        rows = np.concatenate([windows[first : first + own] for first in firsts])
        return torch.from_numpy(check_tokens(rows, self._model.config)).to(self._device)

    @together()
    def gradients(self, windows: Tensor, per_counted: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """This process's loss, and its part of each gradient; the sum of all, where FSDP forms it."""
        self._follow()
        objective, loss = self._root(windows, per_counted)
        (objective / self.on.replicas).backward()
        return loss.detach(), [self._taken(self._leaves[name]) for name in self.learnt]

    @together()
    def per_counted(self, windows: Tensor) -> Tensor | None:
        """`per_counted` of all processes' targets, None if all of them count."""
        if self._recipe.pack is None:
            return None
        targets = packed(windows, self._recipe.pack)[1]
        sizes = [targets.numel(), int((targets != IGNORED).sum())]
        total, counted = self._sum_of_all(torch.tensor(sizes, device=self._device, dtype=torch.float64))
        return (total / counted.clamp(min=1)).to(self._wide)

    @together()
    def totals(self, loss: Tensor, grads: list[Tensor]) -> tuple[float, Tensor]:
        """The loss and the norm of each gradient, of all processes; the gradients are whole sums then."""
        for name, grad in zip(self.learnt, grads, strict=True):
            cut = self._cuts[name]
            for axis in BATCH if "data" not in cut else ():
                summed(grad, self.place, axis)
            if "model" not in cut:
                # The same in all, but for kernels that sum in any order: copies of a weight must stay alike.
                summed(grad, self.place, "model").div_(self.on.model)
        squares = self._squares(grads)
        mean = loss.to(squares.dtype) / self.on.size
        found = self._sum_of_all(torch.cat([mean[None], squares]))
        return float(found[0]), found[1:].sqrt()

    @together()
    def sizes(self) -> list[Tensor] | list[None]:
        """The root mean square of each whole parameter that learns, if the optimiser asks for it."""
        if self._recipe.optimizer != "adafactor":
            return [None] * len(self.learnt)
        roots = self._sum_of_all(self._squares(list(self.learnt.values()))).sqrt()
        counts = (self._model.get_parameter(name).numel() for name in self.learnt)
        return [root.to(self._wide) * count**-0.5 for root, count in zip(roots, counts, strict=True)]

    @together()
    def loss(self, windows: np.ndarray) -> float:
        """Mean cross-entropy of windows (b, n + 1), of which some processes may have one more than others."""
        check_tokens(windows, self._model.config)
        rows = np.array_split(windows, self.on.replicas)[self._replica()]
        share = len(rows) / len(windows) / self.on.model
        ids = torch.from_numpy(rows if len(rows) else windows[:1]).to(self._device)
        self._follow()
        with torch.no_grad():
            loss = self._root(ids, self.per_counted(ids if len(rows) else ids[:0]))[1]
        self._reshard()
        return float(self._sum_of_all(loss.double() * share))

    def forward(self, ids: np.ndarray, tap: Tap) -> None:
        """A forward pass of this process's rows of ids (b, n), for its taps."""
        rows = self.tokens(ids, 1)
        with torch.no_grad():
            self._root(torch.nn.functional.pad(rows, (0, 1)), tap=tap)  # of a window the last id is a target
        self._reshard()

    def placed(self, pieces: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of which each process has such pieces."""
        return {name: placed(piece, self._cuts[name], self.place) for name, piece in pieces.items()}

    def own_part(self, parameter: Parameter) -> tuple[slice, ...]:
        """Which part of a tensor in the canonical layout this process has."""
        return own_part(cuts(self._model.config, self.on)[parameter.name], parameter.shape, self.place)

    def _is_compiled(self) -> bool:
        return self._device.type == "cuda"

    def _put_weights(self) -> dict[nn.Parameter, int]:
        """Give the program its weights. Those that FSDP will share out are meta, with where it cuts them."""
        by_fsdp = {}
        for name, piece in self.params.items():
            module = self._root.model.get_submodule(name.removesuffix(".weight"))
            learns = name in self.learnt
            if "data" in self._cuts[name]:
                dimension = self._cuts[name].index("data")
                shape = list(piece.shape)
                shape[dimension] *= self.on.data
                hollow = torch.empty(shape, device="meta", dtype=self._wide)
                module.weight = nn.Parameter(hollow, requires_grad=learns)
                by_fsdp[module.weight] = dimension
            else:
                dtype = self._wide if isinstance(module, (Norm, HeadNorm)) else self._compute
                module.weight = nn.Parameter(piece.to(dtype), requires_grad=learns)
        return by_fsdp

    def _shard(self, by_fsdp: dict[nn.Parameter, int]) -> None:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # noqa: PLC0415 - a second
        from torch.distributed.tensor import Shard  # noqa: PLC0415

        names = BATCH if self.on.pod > 1 else ("data",)
        narrow = None if self._compute == self._wide else self._compute
        options: dict[str, Any] = {
            "mesh": self.place[names],
            "shard_placement_fn": lambda weight: Shard(by_fsdp[weight]),
            # Rotary tables, which come in with x, stay as wide as they are.
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=narrow, reduce_dtype=self._wide, cast_forward_inputs=False
            ),
            "ignored_params": {p for p in self._root.parameters() if p not in by_fsdp},
        }
        for module in (*self._root.model.blocks, self._root):
            sharded = fully_shard(module, **options)
            # Each loss is divided by the number of replicas already. Gloo has no mean.
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)
        state = {
            f"model.{name}": placed(self.params[name], cut, self.place[names])
            for name, cut in self._cuts.items()
            if "data" in cut
        }
        self._root.load_state_dict(state, strict=False, assign=True)

    def _follow(self) -> None:
        """Narrow copies of weights that FSDP does not make are as the weights are now."""
        with torch.no_grad():
            for name, piece in self.params.items():
                leaf = self._leaves[name]
                if "data" not in self._cuts[name] and leaf.dtype != piece.dtype:
                    leaf.copy_(piece)

    def _reshard(self) -> None:
        """After a forward pass alone FSDP keeps the root's weights gathered, and would use them for ever."""
        reshard = getattr(self._root, "reshard", None)
        if reshard is not None:
            reshard()

    def _taken(self, leaf: nn.Parameter) -> Tensor:
        grad, leaf.grad = leaf.grad, None
        assert grad is not None
        return _local(grad).to(self._wide)

    def _squares(self, pieces: list[Tensor]) -> Tensor:
        """This process's part of the sum of squares of each of `learnt`, or what has their shapes."""
        norms = torch.stack([torch.linalg.vector_norm(piece) for piece in pieces])
        return norms.double().square() * self._weights

    def _copies(self, cut: tuple[Cut, ...]) -> int:
        """How many processes have the same piece."""
        cuts = [size for axis, size in self.on.shape.items() if axis in cut]
        return self.on.size // int(np.prod(cuts))

    def _sum_of_all(self, x: Tensor) -> Tensor:
        dist.all_reduce(x)
        return x

    def _replica(self) -> int:
        """Which part of each batch is this process's."""
        return self.place.get_local_rank("pod") * self.on.data + self.place.get_local_rank("data")


class _Objective(nn.Module):
    """What is minimised and the cross-entropy in it, in one forward pass, as FSDP's hooks need it."""

    def __init__(self, model: PaLM, recipe: Recipe) -> None:
        super().__init__()
        self.model, self._recipe = model, recipe

    def forward(
        self, windows: Tensor, per_counted: Tensor | None = None, tap: Tap = untapped
    ) -> tuple[Tensor, Tensor]:
        model, config, entropy = self.model, self.model.config, cross_entropy
        segments, targets = packed(windows, self._recipe.pack)
        options: dict[str, Any] = {"remat": self._recipe.remat, "features": True, "tap": tap}
        features = model(windows[:, :-1], segments=segments, **options)
        weight = (model.embedding if config.tie_embeddings else model.unembedding).weight
        if tap is not untapped:
            tap("logits", linear(features, weight) * config.logit_scale)
        if isinstance(model, CutPaLM):
            entropy = model.entropy
            features, weight = model.own_words(features, weight)
        options = {"scale": config.logit_scale, "z_loss": self._recipe.z_loss, "entropy": entropy}
        return output_loss(features, weight, targets, **options, per_counted=per_counted)


def _part_of(model: PaLM, mesh: DeviceMesh) -> PaLM:
    if mesh_of_processes(mesh).model > 1:
        return CutPaLM(model.config, model.path, mesh)
    return PaLM(model.config, attention=model.path, device="meta")


def _local(tensor: Any) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
