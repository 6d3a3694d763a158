"""The SwiGLU feed-forward of the JAX wing.

Letters: n sequence, d dim, f ff_mult·dim. Mirror: palm.torch_impl.feedforward.
"""

from __future__ import annotations

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from palm.config import PaLMConfig
from palm.jax_impl.linear import Linear
from palm.jax_impl.shapes import Gated, Hidden
from palm.spec.taps import Tap, untapped


@partial(jax.checkpoint, prevent_cse=False)
def swiglu(gate: Gated, up: Gated) -> Gated:
    """swish(gate) · up, with swish(x) = x / (1 + e^-x).

    The backward pass has only gate and up, and computes the rest again: that is quicker than keeping it.
    Source: Shazeer (arXiv:2002.05202) §2. Shapes: two of (..., f) -> (..., f).
    """
    return jax.nn.silu(gate) * up


class FeedForward(eqx.Module):
    """(swish(y W_gate) · (y W_up)) W_down, without biases.

    Source: PaLM (arXiv:2204.02311) §2. Shapes: y (..., n, d) -> (..., n, d).
    """

    up: Linear
    gate: Linear
    down: Linear

    def __init__(self, config: PaLMConfig, *, dtype: DTypeLike = jnp.float32, key: Array) -> None:
        for_up, for_gate, for_down = jax.random.split(key, 3)
        self.up = Linear(config.dim, config.ff_dim, dtype=dtype, key=for_up)
        self.gate = Linear(config.dim, config.ff_dim, dtype=dtype, key=for_gate)
        self.down = Linear(config.ff_dim, config.dim, dtype=dtype, key=for_down)

    def __call__(self, y: Hidden, tap: Tap = untapped) -> Hidden:
        """With the tap feedforward, the gated product. Shapes: y (..., n, d) -> (..., n, d)."""
        return self.down(tap("feedforward", swiglu(self.gate(y), self.up(y))))
