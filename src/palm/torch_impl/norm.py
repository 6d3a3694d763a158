"""The bias-free norms of the torch wing.

Letters: n sequence, d dim. Mirror: palm.jax_impl.norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from palm.config import PaLMConfig
from palm.torch_impl.shapes import Heads, HeadScale, Hidden


class Norm(nn.Module):
    """RMSNorm or LayerNorm with a scale and no bias, always computed in float32 or wider.

    m = mean(x²), about the mean for LayerNorm; y = x / max(sqrt(m), eps) · g ("clamp")
    or x / sqrt(m + eps) · g ("add"). The variance is the two-pass one: E[x²] − E[x]² cancels.
    Source: PaLM (arXiv:2204.02311) §2; Zhang & Sennrich (arXiv:1910.07467).
    Shapes: x (..., n, d) -> (..., n, d).
    """

    def __init__(self, config: PaLMConfig, *, device: torch.device | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.ones(config.dim, device=device, dtype=dtype))

    def forward(self, x: Hidden) -> Hidden:
        """Shapes: x (..., n, d) -> (..., n, d)."""
        eps = self.config.eps
        wide = widen(x)
        if self.config.norm == "layernorm":
            wide = wide - wide.mean(-1, keepdim=True)
        mean_square = wide.square().mean(-1, keepdim=True)
        if self.config.norm_eps_mode == "clamp":
            # Clamped before the root, so that the gradient of an all-zero row is 0 and not NaN.
            inverse = mean_square.clamp(min=eps**2).rsqrt()
        else:
            inverse = (mean_square + eps).rsqrt()
        return (wide * inverse * widen(self.weight)).to(x.dtype)


class HeadNorm(nn.Module):
    """A norm over each head: y = x / max(‖x‖, 1e-12) · g, computed in float32 or wider.

    Source: Henry et al. (arXiv:2010.04245); palm-rlhf-pytorch, `qk_rmsnorm`.
    Shapes: x (..., e) -> (..., e).
    """

    def __init__(self, config: PaLMConfig, *, device: torch.device | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.dim_head, device=device, dtype=dtype))

    def forward(self, x: Heads) -> Heads:
        """Shapes: x (..., e) -> (..., e)."""
        return unit(x, self.weight)


def unit(x: Heads, weight: HeadScale) -> Heads:
    """x / max(‖x‖, 1e-12) · g. Shapes: x (..., e), weight (e,), or as x has it -> (..., e)."""
    wide = widen(x)
    # Clamped before the root, so that the gradient of an all-zero head is finite.
    inverse = wide.square().sum(-1, keepdim=True).clamp(min=1e-24).rsqrt()
    return (wide * inverse * widen(weight)).to(x.dtype)


def widen(x: Tensor) -> Tensor:
    """x in float32, or in its own dtype if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
