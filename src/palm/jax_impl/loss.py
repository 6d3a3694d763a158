"""The training loss of the JAX wing.

Letters: n sequence, v num_tokens. Mirror: palm.torch_impl.loss.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.nn import logsumexp

from palm.jax_impl.norm import widen


def next_token_loss(logits: Array, tokens: Array) -> Array:
    """Mean cross-entropy of each next token, in nats, in float32 or wider.

    mean over (..., i < n−1) of log Σ_v exp(logits_i) − logits_i[token_{i+1}].
    Shapes: logits (..., n, v), tokens (..., n) -> ().
    """
    predictions = widen(logits[..., :-1, :])
    hit = jnp.take_along_axis(predictions, tokens[..., 1:, None], axis=-1)
    return (logsumexp(predictions, axis=-1) - hit[..., 0]).mean()
