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
    return cross_entropy(logits[..., :-1, :], tokens[..., 1:])[0]


def cross_entropy(logits: Array, targets: Array) -> tuple[Array, Array]:
    """Mean cross-entropy in nats, and the mean of log²Z that the z-loss weighs, in float32 or wider.

    With log Z = log Σ_v exp(logits): mean of log Z − logits[target]; mean of (log Z)².
    Source: PaLM (arXiv:2204.02311) §5, "Loss function". Shapes: logits (..., v), targets (...) -> (), ().
    """
    wide = widen(logits)
    log_z = logsumexp(wide, axis=-1)
    hit = jnp.take_along_axis(wide, targets[..., None], axis=-1)[..., 0]
    return (log_z - hit).mean(), jnp.square(log_z).mean()
