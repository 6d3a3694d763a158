"""The parallel block of the torch wing.

Letters: n sequence, d dim. Mirror: palm.jax_impl.block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from palm.config import PaLMConfig
from palm.recipes import Remat
from palm.spec.taps import Tap, untapped
from palm.torch_impl.attention import Attention
from palm.torch_impl.feedforward import FeedForward
from palm.torch_impl.norm import Norm
from palm.torch_impl.position import Rotations
from palm.torch_impl.private import private_copy
from palm.torch_impl.shapes import Hidden, Segments, Slopes


class Block(nn.Module):
    """out = x + attention(norm(x)) + feedforward(norm(x)): one norm, both branches side by side.

    Source: PaLM (arXiv:2204.02311) §2, "Parallel Layers". Shapes: x (..., n, d) -> (..., n, d).
    """

    def __init__(
        self, config: PaLMConfig, path: str, *, device: torch.device | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.norm = Norm(config, device=device, dtype=dtype)
        self.attention = Attention(config, path, device=device, dtype=dtype)
        self.feedforward = FeedForward(config, device=device, dtype=dtype)

    def forward(
        self,
        x: Hidden,
        rotation: Rotations | None,
        slopes: Slopes | None,
        segments: Segments | None = None,
        remat: Remat = False,
        tap: Tap = untapped,
    ) -> Hidden:
        """With every tap of the block, in dataflow order; the last is `out`.

        Shapes: x (..., n, d) -> (..., n, d).
        """
        y = tap("norm", self.norm(x))
        attended = tap("attention_out", self.attention(y, rotation, slopes, segments, tap))
        fed = recomputed(self.feedforward, y, tap) if remat == "feedforward" else self.feedforward(y, tap)
        return tap("out", x + attended + tap("feedforward_out", fed))


def recomputed(module: nn.Module, *inputs: Any) -> Any:
    """`module(*inputs)`, of which only the inputs are stored: the backward pass computes it again."""
    # With the weights of now: by the time of the backward pass a trainer has put its master copies back.
    weights = dict(module.named_parameters())
    if torch.compiler.is_compiling():  # where weights are put into the module on paper only
        return checkpoint(functional_call, module, weights, inputs, use_reentrant=False)
    if not all(isinstance(weight, nn.Parameter) for weight in weights.values()):
        module = private_copy(module)
    return checkpoint(module, *inputs, use_reentrant=False)
