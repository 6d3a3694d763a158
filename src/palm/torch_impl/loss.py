"""The training loss of the torch wing.

Letters: n sequence, v num_tokens. Mirror: palm.jax_impl.loss.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from palm.torch_impl.norm import widen


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of each next token, in nats, in float32 or wider.

    mean over (..., i < n−1) of log Σ_v exp(logits_i) − logits_i[token_{i+1}].
    Shapes: logits (..., n, v), tokens (..., n) -> ().
    """
    predictions = widen(logits[..., :-1, :]).flatten(0, -2)
    return F.cross_entropy(predictions, tokens[..., 1:].flatten().long())
