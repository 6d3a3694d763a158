"""Causal multi-query attention of the JAX wing.

Letters: n sequence, i query position, j key position, d dim, h heads, e dim_head.
Mirror: palm.torch_impl.attention; differs in the paths there are.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array
from jax.typing import DTypeLike

from palm.config import PaLMConfig
from palm.errors import ConfigError
from palm.fields import check_choice
from palm.jax_impl.linear import Linear
from palm.jax_impl.norm import HeadNorm
from palm.jax_impl.paths import ATTENTION
from palm.jax_impl.position import Rotations, rotate
from palm.jax_impl.shapes import Hidden, Keys, Queries, Segments, Slopes
from palm.jax_impl.sharding import on_each_device
from palm.spec.taps import Tap, untapped


def choose_path(attention: str, config: PaLMConfig, platform: str) -> str:
    """The path a model on `platform` takes: the one named, or with "auto" the fastest there.

    Raises `ConfigError` for one that cannot serve the model there.
    """
    homes = {"cudnn": "gpu", "splash": "tpu", "pallas": "tpu"}
    if attention == "auto":
        if platform == "tpu":
            return "pallas" if config.positions == "alibi" else "splash"
        return "cudnn" if platform == "gpu" and config.rotates else "blockwise"
    check_path(attention, config)
    if homes.get(attention, platform) != platform:
        where = "an NVIDIA GPU" if attention == "cudnn" else "a TPU"
        raise ConfigError(f'attention="{attention}" must be on {where}; got device={platform}. Use "auto".')
    return attention


def check_path(attention: str, config: PaLMConfig) -> None:
    """Raise `ConfigError` for a path that there is not, or one that lacks ALiBi where the config has it."""
    check_choice("attention", attention, tuple(ATTENTION))
    if attention in ("cudnn", "splash") and config.positions == "alibi":
        raise ConfigError(
            f'attention must be a path that has ALiBi where positions="alibi"; got attention="{attention}", '
            'whose kernels would need a bias for each pair of positions. Use "auto", or rotary positions.'
        )


class Attention(eqx.Module):
    """Causal multi-query attention: h query heads share one key head and one value head.

    scores = (q · e^-1/2) kᵀ + position term; softmax over keys; times v; merged heads times W_out.
    With `share_kv` one matrix gives keys and values; `qk_norm` and rotary change the keys only.
    Source: PaLM (arXiv:2204.02311) §2; Shazeer (arXiv:1911.02150).
    Shapes: y (..., n, d) -> (..., n, d).
    """

    query: Linear
    key_value: Linear | None
    key: Linear | None
    value: Linear | None
    query_norm: HeadNorm | None
    key_norm: HeadNorm | None
    out: Linear
    heads: int = eqx.field(static=True)
    path: str = eqx.field(static=True)

    def __init__(self, config: PaLMConfig, path: str, *, dtype: DTypeLike = jnp.float32, key: Array) -> None:
        self.heads, self.path = config.heads, path
        keys = iter(jax.random.split(key, 4))

        def linear(fan_in: int, fan_out: int) -> Linear:
            return Linear(fan_in, fan_out, dtype=dtype, key=next(keys))

        self.query = linear(config.dim, config.inner_dim)
        self.key_value = linear(config.dim, config.dim_head) if config.share_kv else None
        self.key = None if config.share_kv else linear(config.dim, config.dim_head)
        self.value = None if config.share_kv else linear(config.dim, config.dim_head)
        self.query_norm = HeadNorm(config, dtype=dtype) if config.qk_norm else None
        self.key_norm = HeadNorm(config, dtype=dtype) if config.qk_norm else None
        self.out = linear(config.inner_dim, config.dim)

    def __call__(
        self,
        y: Hidden,
        rotation: Rotations | None,
        slopes: Slopes | None,
        segments: Segments | None = None,
        tap: Tap = untapped,
        keyed: Hidden | None = None,
    ) -> Hidden:
        """With the taps q, k, v (after the position step, before the scale) and attention.

        `keyed` is what keys and values are formed from, if it is not to be y itself: the same values, so that
        its gradient, which is whole on each device of a mesh, is added to that of y when that is whole, too.
        Shapes: y, keyed (..., n, d) -> (..., n, d).
        """
        q, k, v = self.projected(y, y if keyed is None else keyed, rotation)
        q = tap("q", rearrange(q, "... n h e -> ... n (h e)"))
        q, k, v = rearrange(q, "... n (h e) -> ... n h e", h=self.heads), tap("k", k), tap("v", v)
        attended = on_each_device(ATTENTION[self.path], q, k, v, slopes, segments)
        return self.out(tap("attention", rearrange(attended, "... n h e -> ... n (h e)")))

    def projected(self, y: Hidden, keyed: Hidden, rotation: Rotations | None) -> tuple[Queries, Keys, Keys]:
        """Shapes: y, keyed (..., n, d) -> q (..., n, h, e), k and v (..., n, e)."""
        q = rearrange(self.query(y), "... n (h e) -> ... n h e", h=self.heads)
        if self.key_value is not None:
            k = v = self.key_value(keyed)
        else:
            assert self.key is not None
            assert self.value is not None
            k, v = self.key(keyed), self.value(keyed)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if rotation is not None:
            (cos, sin), of_keys = rotation
            q, k = rotate(q, (cos[:, None], sin[:, None])), rotate(k, of_keys)
        return q, k, v
