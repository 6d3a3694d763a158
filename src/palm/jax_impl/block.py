"""The parallel block of the JAX wing.

Letters: n sequence, d dim. Mirror: palm.torch_impl.block.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from palm.config import PaLMConfig
from palm.jax_impl.attention import Attention
from palm.jax_impl.feedforward import FeedForward
from palm.jax_impl.norm import Norm
from palm.jax_impl.position import Rotations
from palm.jax_impl.shapes import Hidden, Segments, Slopes
from palm.jax_impl.sharding import added, gathered, ways
from palm.recipes import Remat
from palm.spec.taps import Tap, untapped


class Block(eqx.Module):
    """out = x + attention(norm(x)) + feedforward(norm(x)): one norm, both branches side by side.

    Source: PaLM (arXiv:2204.02311) §2, "Parallel Layers". Shapes: x (..., n, d) -> (..., n, d).
    """

    norm: Norm
    attention: Attention
    feedforward: FeedForward

    def __init__(self, config: PaLMConfig, path: str, *, dtype: DTypeLike = jnp.float32, key: Array) -> None:
        for_attention, for_feedforward = jax.random.split(key)
        self.norm = Norm(config, dtype=dtype)
        self.attention = Attention(config, path, dtype=dtype, key=for_attention)
        self.feedforward = FeedForward(config, dtype=dtype, key=for_feedforward)

    def __call__(
        self,
        x: Hidden,
        rotation: Rotations | None,
        slopes: Slopes | None,
        segments: Segments | None = None,
        remat: Remat = False,
        tap: Tap = untapped,
    ) -> Hidden:
        """With every tap of the block, in dataflow order; the last is `out`.

        What is computed again is not tapped: its values belong to a trace of their own.
        Shapes: x (..., n, d) -> (..., n, d).
        """
        normed = self.norm(x)
        y = tap("norm", gathered(normed))
        keyed = y if ways(x) == 1 else gathered(normed)
        attended = tap("attention_out", self.attention(y, rotation, slopes, segments, tap, keyed))
        fed = recomputed(self.feedforward, y) if remat == "feedforward" else self.feedforward(y, tap)
        return tap("out", added(x, attended, tap("feedforward_out", fed)))


def recomputed(module: eqx.Module, *inputs: Any) -> Any:
    """`module(*inputs)`, of which only the inputs are stored: the backward pass computes it again."""
    return jax.checkpoint(lambda module, inputs: module(*inputs))(module, inputs)
