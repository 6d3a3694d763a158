"""The SwiGLU feed-forward of the JAX wing.

Letters: n sequence, d dim, f ff_mult·dim. Mirror: palm.torch_impl.feedforward.
"""

from __future__ import annotations

from functools import partial

import equinox as eqx
import jax
from jax import Array

from palm.jax_impl.linear import linear


@partial(jax.checkpoint, prevent_cse=False)
def swiglu(gate: Array, up: Array) -> Array:
    """swish(gate) · up, with swish(x) = x / (1 + e^-x).

    The backward pass has only gate and up, and computes the rest again: that is quicker than keeping it.
    Source: Shazeer (arXiv:2002.05202) §2. Shapes: two of (..., f) -> (..., f).
    """
    return jax.nn.silu(gate) * up


class FeedForward(eqx.Module):
    """(swish(y W_gate) · (y W_up)) W_down, without biases.

    Source: PaLM (arXiv:2204.02311) §2. Shapes: y (..., n, d) -> (..., n, d).
    """

    up: Array
    gate: Array
    down: Array

    def activations(self, y: Array) -> dict[str, Array]:
        """The taps feedforward (the gated product) and feedforward_out."""
        gated = swiglu(linear(y, self.gate), linear(y, self.up))
        return {"feedforward": gated, "feedforward_out": linear(gated, self.down)}

    def __call__(self, y: Array) -> dict[str, Array]:
        """The same, as a call, which can be computed again."""
        return self.activations(y)
