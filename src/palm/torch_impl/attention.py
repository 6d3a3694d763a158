"""Causal multi-query attention of the torch wing.

Letters: n sequence, i query position, j key position, d dim, h heads, e dim_head.
Mirror: palm.jax_impl.attention; differs in the paths there are.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn

from palm.config import PaLMConfig
from palm.errors import ConfigError
from palm.fields import check_choice
from palm.spec.taps import Tap, untapped
from palm.torch_impl.linear import Linear
from palm.torch_impl.norm import HeadNorm
from palm.torch_impl.paths import ATTENTION
from palm.torch_impl.position import Rotations, rotate
from palm.torch_impl.shapes import Hidden, Keys, Queries, Segments, Slopes


def choose_path(attention: str, config: PaLMConfig, device: torch.device) -> str:
    """The path a model on `device` takes: the one named, or with "auto" the fastest there.

    Raises `ConfigError` for one that cannot serve the model there.
    """
    if attention == "auto":
        if device.type == "cuda":
            return "flex" if config.positions == "alibi" else "sdpa"
        return "blockwise"
    check_path(attention, config)
    if attention == "flex" and device.type == "cpu":
        raise ConfigError(
            'attention="flex" must be on a GPU because it has no gradient on a CPU; got device=cpu. '
            'Use "auto".'
        )
    return attention


def check_path(attention: str, config: PaLMConfig) -> None:
    """Raise `ConfigError` for a path that there is not, or one that lacks ALiBi where the config has it."""
    check_choice("attention", attention, tuple(ATTENTION))
    if attention == "sdpa" and config.positions == "alibi":
        raise ConfigError(
            'attention must be a path that has ALiBi where positions="alibi"; got attention="sdpa", whose '
            'kernels would need a bias for each pair of positions. Use "auto", or rotary positions.'
        )


class Attention(nn.Module):
    """Causal multi-query attention: h query heads share one key head and one value head.

    scores = (q · e^-1/2) kᵀ + position term; softmax over keys; times v; merged heads times W_out.
    With `share_kv` one matrix gives keys and values; `qk_norm` and rotary change the keys only.
    Source: PaLM (arXiv:2204.02311) §2; Shazeer (arXiv:1911.02150).
    Shapes: y (..., n, d) -> (..., n, d).
    """

    def __init__(
        self, config: PaLMConfig, path: str, *, device: torch.device | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.config, self.path = config, path

        def linear(fan_in: int, fan_out: int) -> Linear:
            return Linear(fan_in, fan_out, device=device, dtype=dtype)

        self.query = linear(config.dim, config.inner_dim)
        if config.share_kv:
            self.key_value = linear(config.dim, config.dim_head)
        else:
            self.key = linear(config.dim, config.dim_head)
            self.value = linear(config.dim, config.dim_head)
        if config.qk_norm:
            self.query_norm = HeadNorm(config, device=device, dtype=dtype)
            self.key_norm = HeadNorm(config, device=device, dtype=dtype)
        self.out = linear(config.inner_dim, config.dim)

    def forward(
        self,
        y: Hidden,
        rotation: Rotations | None,
        slopes: Slopes | None,
        segments: Segments | None = None,
        tap: Tap = untapped,
    ) -> Hidden:
        """With the taps q, k, v (after the position step, before the scale) and attention.

        Shapes: y (..., n, d) -> (..., n, d).
        """
        q, k, v = self.projected(y, rotation)
        q = tap("q", rearrange(q, "... n h e -> ... n (h e)"))
        q, k, v = rearrange(q, "... n (h e) -> ... n h e", h=self.config.heads), tap("k", k), tap("v", v)
        attended = rearrange(ATTENTION[self.path](q, k, v, slopes, segments), "... n h e -> ... n (h e)")
        return self.out(tap("attention", attended))

    def projected(self, y: Hidden, rotation: Rotations | None) -> tuple[Queries, Keys, Keys]:
        """Shapes: y (..., n, d) -> q (..., n, h, e), k and v (..., n, e)."""
        q = rearrange(self.query(y), "... n (h e) -> ... n h e", h=self.config.heads)
        if self.config.share_kv:
            k = v = self.key_value(y)
        else:
            k, v = self.key(y), self.value(y)
        if self.config.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        if rotation is not None:
            (cos, sin), of_keys = rotation
            q, k = rotate(q, (cos[:, None], sin[:, None])), rotate(k, of_keys)
        return q, k, v
