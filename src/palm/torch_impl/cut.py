"""One process's part of a model that is cut along `model`: tensor parallelism.

Each process has some of the heads, of the feed-forward columns and of the vocabulary, and all of what does
not divide. It forms its part of a sum over these, and what follows the sum is the same in all. The loss takes
a part of the vocabulary in each process also where that does not divide.
Letters: n sequence, d dim, v num_tokens. Source: Megatron-LM (arXiv:1909.08053) §3.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from palm.config import PaLMConfig
from palm.recipes import Remat
from palm.spec.mesh import ways
from palm.spec.taps import Tap, untapped
from palm.spec.tokens import IGNORED
from palm.torch_impl.block import Block, recomputed
from palm.torch_impl.linear import Linear, linear
from palm.torch_impl.model import PaLM
from palm.torch_impl.norm import HeadNorm, unit, widen
from palm.torch_impl.pieces import mesh_of_processes
from palm.torch_impl.position import Rotations
from palm.torch_impl.shapes import (
    Features,
    Hidden,
    Inputs,
    Output,
    Outputs,
    OwnOutput,
    Scalar,
    Scores,
    Segments,
    Slopes,
    Targets,
    Tokens,
)

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Group = dist.ProcessGroup


def spread(x: Tensor, group: Group) -> Tensor:
    """x, the same in all processes, of which each computes another part of a sum.

    Its gradient is the sum of theirs: without that each has the gradient of its own part, and nothing fails.
    """
    spread: Tensor = _Spread.apply(x, group)
    return spread


def collected(x: Tensor, group: Group) -> Tensor:
    """The sum over the processes, each of which goes on alike with it."""
    collected: Tensor = _Collected.apply(x, group)
    return collected


class CutPaLM(PaLM):
    """One process's part of a PaLM model, which computes with those of the others what the model computes.

    It gives `features` that are the same in all processes. The constructor allocates nothing: weights, which
    are this process's pieces of the model's, are put in afterwards. Taps get this process's part of a value.
    """

    def __init__(self, config: PaLMConfig, path: str, mesh: DeviceMesh) -> None:
        super().__init__(config, attention=path, device="meta")
        on, axis = mesh_of_processes(mesh), mesh["model"]
        self.group, self._rank, self._parts = axis.get_group(), axis.get_local_rank(), on.model
        self._heads, self._words, columns = (ways(config, on, axis) > 1 for axis in ("heads", "vocab", "ff"))
        self.blocks = nn.ModuleList(
            CutBlock(block, self._parts, self.group, heads=self._heads, columns=columns)
            for block in self.blocks
            if isinstance(block, Block)
        )

    def positions(self, length: int, x: Tensor) -> tuple[Rotations | None, Slopes | None]:
        """As `PaLM.positions`, of this process's heads."""
        rotation, slopes = super().positions(length, x)
        if slopes is not None and self._heads:
            slopes = slopes.chunk(self._parts)[self._rank]
        return rotation, slopes

    def entropy(self, logits: Scores, targets: Targets, *, masked: bool = False) -> tuple[Scalar, Scalar]:
        """`cross_entropy`, of logits of this process's part of the vocabulary, as `own_words` gives them."""
        wide = widen(logits)
        own = self.config.num_tokens - self._rank * wide.shape[-1]
        if own < wide.shape[-1]:  # the rest stands for no token
            wide = wide.masked_fill(torch.arange(wide.shape[-1], device=wide.device) >= own, -torch.inf)
        highest = wide.detach().amax(-1)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.group)
        sums = collected((wide - highest[..., None]).exp().sum(-1), self.group)
        log_z = highest + sums.log()
        known, at = self._own(targets.long(), wide.shape[-1])
        hit = wide.gather(-1, at[..., None])[..., 0].masked_fill(~known, 0)
        losses = log_z - collected(hit, self.group)
        if masked:
            losses, log_z = (x.masked_fill(targets == IGNORED, 0) for x in (losses, log_z))
        return losses.mean(), log_z.square().mean()

    def own_words(self, features: Features, weight: Output) -> tuple[Features, OwnOutput]:
        """What the output layer reads, and the rows of its matrix for this process's part of the logits.

        Of a matrix that `model` does not divide all processes take as many rows; beyond the last are zeros.
        Shapes: features (..., d), weight (v, d), its part where it is cut -> (..., d), (w, d).
        """
        if not self._words:
            count = -(-len(weight) // self._parts)
            own = spread(weight, self.group)[self._rank * count :][:count]
            weight = nn.functional.pad(own, (0, 0, 0, count - len(own)))
        return spread(features, self.group), weight

    def _embedded(self, tokens: Tokens) -> Hidden:
        if not self._words:
            return super()._embedded(tokens)
        known, at = self._own(tokens.long(), len(self.embedding.weight))
        return collected(self.embedding(at).masked_fill(~known[..., None], 0), self.group)

    def _own(self, ids: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Which ids this process has, and their places among its `size`; some place for the others."""
        places = ids - self._rank * size
        known = (places >= 0) & (places < size)
        return known, places.where(known, 0)


class CutBlock(nn.Module):
    """One process's part of a block: the parallel branches need one sum over the processes, not two.

    Shapes: x (..., n, d) -> (..., n, d).
    """

    def __init__(self, block: Block, parts: int, group: Group, *, heads: bool, columns: bool) -> None:
        super().__init__()
        self.norm, self.attention, self.feedforward = block.norm, block.attention, block.feedforward
        self._group, self._heads, self._columns = group, heads, columns
        if heads:
            config = self.attention.config
            self.attention.config = replace(config, heads=config.heads // parts)
            for name in ("key_value",) if config.share_kv else ("key", "value"):
                setattr(self.attention, name, SpreadLinear(config.dim, config.dim_head, group))
            for name in ("query_norm", "key_norm") if config.qk_norm else ():
                setattr(self.attention, name, SpreadHeadNorm(config, group))

    def forward(
        self,
        x: Hidden,
        rotation: Rotations | None,
        slopes: Slopes | None,
        segments: Segments | None = None,
        remat: Remat = False,
        tap: Tap = untapped,
    ) -> Hidden:
        """As `Block.forward`; a tap of what is summed gets this process's part of the sum.

        Shapes: x (..., n, d) -> (..., n, d).
        """
        y = tap("norm", self.norm(x))
        parted = spread(y, self._group) if self._heads or self._columns else y
        feedforward = partial(recomputed, self.feedforward) if remat == "feedforward" else self.feedforward
        attention = self.attention(parted if self._heads else y, rotation, slopes, segments, tap)
        attended = tap("attention_out", attention)
        fed = tap("feedforward_out", feedforward(parted if self._columns else y, tap))
        if self._heads and self._columns:
            return tap("out", x + collected(attended + fed, self._group))
        attended = collected(attended, self._group) if self._heads else attended
        return tap("out", x + attended + (collected(fed, self._group) if self._columns else fed))


class SpreadLinear(Linear):
    """A whole `Linear` whose outputs each process uses for a part of a sum: keys and values of some heads."""

    def __init__(self, fan_in: int, fan_out: int, group: Group) -> None:
        super().__init__(fan_in, fan_out, device=torch.device("meta"), dtype=torch.float32)
        self._group = group

    def forward(self, x: Inputs) -> Outputs:
        """Shapes: x (..., fan_in) -> (..., fan_out)."""
        return linear(x, spread(self.weight, self._group))


class SpreadHeadNorm(HeadNorm):
    """A whole `HeadNorm` whose outputs each process uses for a part of a sum: those of some heads."""

    def __init__(self, config: PaLMConfig, group: Group) -> None:
        super().__init__(config, device=torch.device("meta"), dtype=torch.float32)
        self._group = group

    def forward(self, x: Inputs) -> Outputs:
        """Shapes: x (..., e) -> (..., e)."""
        return unit(x, spread(self.weight, self._group))


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sum(grad, ctx.group), None


class _Collected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return _sum(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _sum(x: Tensor, group: Group) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total
