"""Causal multi-query attention of the JAX wing.

Letters: n sequence, i query position, j key position, d dim, h heads, e dim_head.
Mirror: palm.torch_impl.attention; differs in the paths there are.
"""

from __future__ import annotations

import equinox as eqx
from einops import rearrange
from jax import Array

from palm.config import PaLMConfig
from palm.errors import ConfigError
from palm.jax_impl.linear import linear
from palm.jax_impl.paths import ATTENTION
from palm.jax_impl.position import Rotation, rotate


def choose_path(attention: str, config: PaLMConfig, platform: str) -> str:
    """The path a model on `platform` takes: the one named, or with "auto" the fastest there.

    Raises `ConfigError` for one that cannot serve the model there.
    """
    homes = {"cudnn": "gpu", "splash": "tpu", "pallas": "tpu"}
    if attention == "auto":
        if platform == "tpu":
            return "pallas" if config.positions == "alibi" else "splash"
        return "cudnn" if platform == "gpu" and config.positions == "rotary" else "blockwise"
    if attention in ("cudnn", "splash") and config.positions == "alibi":
        raise ConfigError(
            f'attention must be a path that has ALiBi where positions="alibi"; got attention="{attention}", '
            'whose kernels would need a bias for each pair of positions. Use "auto", or rotary positions.'
        )
    if homes.get(attention, platform) != platform:
        where = "an NVIDIA GPU" if attention == "cudnn" else "a TPU"
        raise ConfigError(f'attention="{attention}" must be on {where}; got device={platform}. Use "auto".')
    return attention


class Attention(eqx.Module):
    """Causal multi-query attention: h query heads share one key head and one value head.

    scores = (q · e^-1/2) kᵀ + position term; softmax over keys; times v; merged heads times W_out.
    With `share_kv` one matrix gives keys and values; rotary turns the keys only.
    Source: PaLM (arXiv:2204.02311) §2; Shazeer (arXiv:1911.02150).
    Shapes: y (..., n, d) -> (..., n, d).
    """

    query: Array
    key_value: Array | None
    key: Array | None
    value: Array | None
    out: Array
    config: PaLMConfig = eqx.field(static=True)
    path: str = eqx.field(static=True)

    def activations(self, y: Array, rotation: Rotation | None, slopes: Array | None) -> dict[str, Array]:
        """The taps q, k, v (after the position step, before the scale), attention, attention_out."""
        q, k, v = self._projected(y, rotation)
        attended = rearrange(ATTENTION[self.path](q, k, v, slopes), "... n h e -> ... n (h e)")
        return {
            "q": rearrange(q, "... n h e -> ... n (h e)"),
            "k": k,
            "v": v,
            "attention": attended,
            "attention_out": linear(attended, self.out),
        }

    def _projected(self, y: Array, rotation: Rotation | None) -> tuple[Array, Array, Array]:
        """Shapes: y (..., n, d) -> q (..., n, h, e), k and v (..., n, e)."""
        q = rearrange(linear(y, self.query), "... n (h e) -> ... n h e", h=self.config.heads)
        if self.config.share_kv:
            k = v = linear(y, self.key_value)
        else:
            k, v = linear(y, self.key), linear(y, self.value)
        if rotation is not None:
            cos, sin = rotation
            q, k = rotate(q, (cos[:, None], sin[:, None])), rotate(k, rotation)
        return q, k, v
