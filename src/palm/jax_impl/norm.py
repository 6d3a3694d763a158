"""The bias-free norms of the JAX wing.

Letters: n sequence, d dim. Mirror: palm.torch_impl.norm.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from palm.config import PaLMConfig
from palm.jax_impl.shapes import Heads, HeadScale, Hidden


class Norm(eqx.Module):
    """RMSNorm or LayerNorm with a scale and no bias, always computed in float32 or wider.

    m = mean(x²), about the mean for LayerNorm; y = x / max(sqrt(m), eps) · g ("clamp")
    or x / sqrt(m + eps) · g ("add"). The variance is the two-pass one: E[x²] − E[x]² cancels.
    Source: PaLM (arXiv:2204.02311) §2; Zhang & Sennrich (arXiv:1910.07467).
    Shapes: x (..., n, d) -> (..., n, d).
    """

    weight: Array
    kind: str = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    eps_mode: str = eqx.field(static=True)

    def __init__(self, config: PaLMConfig, *, dtype: DTypeLike = jnp.float32) -> None:
        self.weight = jnp.ones(config.dim, dtype)
        assert config.norm is not None
        assert config.norm_eps_mode is not None
        self.kind, self.eps, self.eps_mode = config.norm, config.eps, config.norm_eps_mode

    def __call__(self, x: Hidden) -> Hidden:
        """Shapes: x (..., n, d) -> (..., n, d)."""
        # By rows: XLA takes twenty times as long for the gradient where there are batch dimensions.
        wide = widen(x.reshape(-1, x.shape[-1]))
        if self.kind == "layernorm":
            wide = wide - wide.mean(-1, keepdims=True)
        mean_square = jnp.square(wide).mean(-1, keepdims=True)
        if self.eps_mode == "clamp":
            # Clamped before the root, so that the gradient of an all-zero row is 0 and not NaN.
            inverse = lax.rsqrt(jnp.maximum(mean_square, self.eps**2))
        else:
            inverse = lax.rsqrt(mean_square + self.eps)
        return (wide * inverse * widen(self.weight)).astype(x.dtype).reshape(x.shape)


class HeadNorm(eqx.Module):
    """A norm over each head: y = x / max(‖x‖, 1e-12) · g, computed in float32 or wider.

    Source: Henry et al. (arXiv:2010.04245); palm-rlhf-pytorch, `qk_rmsnorm`.
    Shapes: x (..., e) -> (..., e).
    """

    weight: Array

    def __init__(self, config: PaLMConfig, *, dtype: DTypeLike = jnp.float32) -> None:
        self.weight = jnp.ones(config.dim_head, dtype)

    def __call__(self, x: Heads) -> Heads:
        """Shapes: x (..., e) -> (..., e)."""
        return unit(x, self.weight)


def unit(x: Heads, weight: HeadScale) -> Heads:
    """x / max(‖x‖, 1e-12) · g. Shapes: x (..., e), weight (e,), or as x has it -> (..., e)."""
    wide = widen(x)
    # Clamped before the root, so that the gradient of an all-zero head is finite.
    inverse = lax.rsqrt(jnp.maximum(jnp.square(wide).sum(-1, keepdims=True), 1e-24))
    return (wide * inverse * widen(weight)).astype(x.dtype)


def widen(x: Array) -> Array:
    """x in float32, or in its own dtype if that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
