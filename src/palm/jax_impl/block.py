"""The parallel block of the JAX wing.

Letters: n sequence, d dim. Mirror: palm.torch_impl.block.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
from jax import Array

from palm.jax_impl.attention import Attention
from palm.jax_impl.feedforward import FeedForward
from palm.jax_impl.norm import Norm
from palm.jax_impl.position import Rotation
from palm.recipes import Remat


class Block(eqx.Module):
    """out = x + attention(norm(x)) + feedforward(norm(x)): one norm, both branches side by side.

    Source: PaLM (arXiv:2204.02311) §2, "Parallel Layers". Shapes: x (..., n, d) -> (..., n, d).
    """

    norm: Norm
    attention: Attention
    feedforward: FeedForward

    def activations(
        self, x: Array, rotation: Rotation | None, slopes: Array | None, remat: Remat = False
    ) -> dict[str, Array]:
        """Every tap of the block, in dataflow order; the last is `out`."""
        y = self.norm(x)
        taps = {
            "norm": y,
            **self.attention.activations(y, rotation, slopes),
            **(recomputed(self.feedforward, y) if remat == "feedforward" else self.feedforward(y)),
        }
        return {**taps, "out": x + taps["attention_out"] + taps["feedforward_out"]}

    def __call__(
        self, x: Array, rotation: Rotation | None, slopes: Array | None, remat: Remat = False
    ) -> Array:
        """Shapes: x (..., n, d) -> (..., n, d)."""
        return self.activations(x, rotation, slopes, remat)["out"]


def recomputed(module: eqx.Module, *inputs: Any) -> Any:
    """`module(*inputs)`, of which only the inputs are stored: the backward pass computes it again."""
    return jax.checkpoint(lambda module, inputs: module(*inputs))(module, inputs)
