"""Causal multi-query attention of the torch wing.

Letters: n sequence, i query position, j key position, d dim, h heads, e dim_head.
Mirror: palm.jax_impl.attention; differs only in the framework's fused call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from palm.config import PaLMConfig
from palm.torch_impl.norm import widen
from palm.torch_impl.position import Rotation, rotate


def textbook_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax((q·e^-1/2) kᵀ + bias) v, written out, in float32 or wider, rounded once at the end.

    `bias` (h, n, n) carries the causal mask; None means the mask alone.
    Shapes: q (..., h, n, e), k and v (..., n, e) -> (..., h, n, e).
    """
    scores = torch.einsum("...hie,...je->...hij", widen(q) * q.shape[-1] ** -0.5, widen(k))
    if bias is None:
        n = q.shape[-2]
        later = torch.ones(n, n, device=q.device, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    else:
        scores = scores + bias
    return torch.einsum("...hij,...je->...hie", scores.softmax(-1), widen(v)).to(q.dtype)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """`textbook_attention` by PyTorch's scaled_dot_product_attention; the one key head is not copied.

    The fused kernels want exactly one batch dimension. Shapes: as there.
    """
    attended = F.scaled_dot_product_attention(
        q.reshape(-1, *q.shape[-3:]),
        k.reshape(-1, 1, *k.shape[-2:]),
        v.reshape(-1, 1, *v.shape[-2:]),
        attn_mask=bias,
        is_causal=bias is None,
        enable_gqa=True,
    )
    return attended.reshape(q.shape)


ATTENTION = {"textbook": textbook_attention, "fused": fused_attention}


class Attention(nn.Module):
    """Causal multi-query attention: h query heads share one key head and one value head.

    scores = (q · e^-1/2) kᵀ + position term; softmax over keys; times v; merged heads times W_out.
    With `share_kv` one matrix gives keys and values; rotary turns the keys only.
    Source: PaLM (arXiv:2204.02311) §2; Shazeer (arXiv:1911.02150).
    Shapes: y (..., n, d) -> (..., n, d).
    """

    def __init__(
        self, config: PaLMConfig, path: str, *, device: torch.device | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.config, self.path = config, path

        def linear(fan_in: int, fan_out: int) -> nn.Linear:
            return nn.Linear(fan_in, fan_out, bias=False, device=device, dtype=dtype)

        self.query = linear(config.dim, config.inner_dim)
        if config.share_kv:
            self.key_value = linear(config.dim, config.dim_head)
        else:
            self.key = linear(config.dim, config.dim_head)
            self.value = linear(config.dim, config.dim_head)
        self.out = linear(config.inner_dim, config.dim)

    def activations(self, y: Tensor, rotation: Rotation | None, bias: Tensor | None) -> dict[str, Tensor]:
        """The taps q, k, v (after the position step, before the scale), attention, attention_out."""
        q = rearrange(self.query(y), "... n (h e) -> ... h n e", h=self.config.heads)
        if self.config.share_kv:
            k = v = self.key_value(y)
        else:
            k, v = self.key(y), self.value(y)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        attended = rearrange(ATTENTION[self.path](q, k, v, bias), "... h n e -> ... n (h e)")
        return {
            "q": rearrange(q, "... h n e -> ... n (h e)"),
            "k": k,
            "v": v,
            "attention": attended,
            "attention_out": self.out(attended),
        }

    def decode(
        self,
        y: Tensor,
        rotation: Rotation | None,
        bias: Tensor,
        keys: Tensor,
        values: Tensor,
        positions: Tensor,
    ) -> Tensor:
        """Attention of one new token a sequence to the cached ones and itself; its key and value join them.

        `bias` carries the mask, for there are no tokens yet at the end of the cache. One key head: all query
        heads of a sequence meet its keys in one matrix product. Writes into `keys` and `values`, which may be
        the same tensor.
        Shapes: y (b, d), keys and values (b, n, e), bias (b, 1 or h, n), positions (b,) -> (b, d).
        """
        q = rearrange(self.query(y), "b (h e) -> b h e", h=self.config.heads)
        if self.config.share_kv:
            k = v = self.key_value(y)
        else:
            k, v = self.key(y), self.value(y)
        if rotation is not None:
            cos, sin = rotation
            q, k = rotate(q, (cos[:, None], sin[:, None])), rotate(k, rotation)
        rows = torch.arange(len(y), device=y.device)
        keys[rows, positions], values[rows, positions] = k, v
        scores = torch.einsum("bhe,bne->bhn", widen(q) * q.shape[-1] ** -0.5, widen(keys)) + bias
        attended = torch.einsum("bhn,bne->bhe", scores.softmax(-1), widen(values)).to(y.dtype)
        return self.out(rearrange(attended, "b h e -> b (h e)"))
