"""The SwiGLU feed-forward of the torch wing.

Letters: n sequence, d dim, f ff_mult·dim. Mirror: palm.jax_impl.feedforward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from palm.config import PaLMConfig
from palm.spec.taps import Tap, untapped
from palm.torch_impl.linear import Linear
from palm.torch_impl.shapes import Gated, Hidden


def swiglu(gate: Gated, up: Gated) -> Gated:
    """swish(gate) · up, with swish(x) = x / (1 + e^-x).

    Source: Shazeer (arXiv:2002.05202) §2. Shapes: two of (..., f) -> (..., f).
    """
    return F.silu(gate) * up


class FeedForward(nn.Module):
    """(swish(y W_gate) · (y W_up)) W_down, without biases.

    Source: PaLM (arXiv:2204.02311) §2. Shapes: y (..., n, d) -> (..., n, d).
    """

    def __init__(self, config: PaLMConfig, *, device: torch.device | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.up = Linear(config.dim, config.ff_dim, device=device, dtype=dtype)
        self.gate = Linear(config.dim, config.ff_dim, device=device, dtype=dtype)
        self.down = Linear(config.ff_dim, config.dim, device=device, dtype=dtype)

    def forward(self, y: Hidden, tap: Tap = untapped) -> Hidden:
        """With the tap feedforward, the gated product. Shapes: y (..., n, d) -> (..., n, d)."""
        return self.down(tap("feedforward", swiglu(self.gate(y), self.up(y))))
