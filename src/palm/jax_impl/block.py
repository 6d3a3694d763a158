"""The parallel block of the JAX wing.

Letters: n sequence, d dim. Mirror: palm.torch_impl.block.
"""

from __future__ import annotations

import equinox as eqx
from jax import Array

from palm.jax_impl.attention import Attention
from palm.jax_impl.feedforward import FeedForward
from palm.jax_impl.norm import Norm
from palm.jax_impl.position import Rotation


class Block(eqx.Module):
    """out = x + attention(norm(x)) + feedforward(norm(x)): one norm, both branches side by side.

    Source: PaLM (arXiv:2204.02311) §2, "Parallel Layers". Shapes: x (..., n, d) -> (..., n, d).
    """

    norm: Norm
    attention: Attention
    feedforward: FeedForward

    def activations(self, x: Array, rotation: Rotation | None, slopes: Array | None) -> dict[str, Array]:
        """Every tap of the block, in dataflow order; the last is `out`."""
        y = self.norm(x)
        taps = {
            "norm": y,
            **self.attention.activations(y, rotation, slopes),
            **self.feedforward.activations(y),
        }
        return {**taps, "out": x + taps["attention_out"] + taps["feedforward_out"]}

    def __call__(self, x: Array, rotation: Rotation | None, slopes: Array | None) -> Array:
        """Shapes: x (..., n, d) -> (..., n, d)."""
        return self.activations(x, rotation, slopes)["out"]
