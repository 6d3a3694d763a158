"""Causal multi-query attention of the JAX wing.

Letters: n sequence, i query position, j key position, d dim, h heads, e dim_head.
Mirror: palm.torch_impl.attention; differs only in the framework's fused call.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from palm.config import PaLMConfig
from palm.jax_impl.norm import widen
from palm.jax_impl.position import Rotation, rotate


def textbook_attention(q: Array, k: Array, v: Array, bias: Array | None) -> Array:
    """softmax((q·e^-1/2) kᵀ + bias) v, written out, in float32 or wider, rounded once at the end.

    `bias` (h, n, n) carries the causal mask; None means the mask alone.
    Shapes: q (..., h, n, e), k and v (..., n, e) -> (..., h, n, e).
    """
    scores = jnp.einsum("...hie,...je->...hij", widen(q) * q.shape[-1] ** -0.5, widen(k))
    if bias is None:
        n = q.shape[-2]
        later = jnp.triu(jnp.ones((n, n), bool), 1)
        scores = jnp.where(later, -jnp.inf, scores)
    else:
        scores = scores + bias
    return jnp.einsum("...hij,...je->...hie", jax.nn.softmax(scores, -1), widen(v)).astype(q.dtype)


def fused_attention(q: Array, k: Array, v: Array, bias: Array | None) -> Array:
    """`textbook_attention` by jax.nn.dot_product_attention; the one key head is not copied.

    It wants (batch, n, heads, e) with exactly one batch dimension, and takes its softmax in float32 whatever
    it is given: float64 goes by the textbook. Shapes: as there.
    """
    if q.dtype == jnp.float64:
        return textbook_attention(q, k, v, bias)
    attended = jax.nn.dot_product_attention(
        rearrange(q.reshape(-1, *q.shape[-3:]), "b h n e -> b n h e"),
        k.reshape(-1, k.shape[-2], 1, k.shape[-1]),
        v.reshape(-1, v.shape[-2], 1, v.shape[-1]),
        bias=None if bias is None else bias[None],
        is_causal=bias is None,
    )
    return rearrange(attended, "b n h e -> b h n e").reshape(q.shape)


ATTENTION = {"textbook": textbook_attention, "fused": fused_attention}


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

    def activations(self, y: Array, rotation: Rotation | None, bias: Array | None) -> dict[str, Array]:
        """The taps q, k, v (after the position step, before the scale), attention, attention_out."""
        q = rearrange(y @ self.query, "... n (h e) -> ... h n e", h=self.config.heads)
        if self.config.share_kv:
            k = v = y @ self.key_value
        else:
            k, v = y @ self.key, y @ self.value
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        attended = rearrange(ATTENTION[self.path](q, k, v, bias), "... h n e -> ... n (h e)")
        return {
            "q": rearrange(q, "... h n e -> ... n (h e)"),
            "k": k,
            "v": v,
            "attention": attended,
            "attention_out": attended @ self.out,
        }

    def decode(
        self,
        y: Array,
        rotation: Rotation | None,
        bias: Array,
        keys: Array,
        values: Array | None,
        positions: Array,
    ) -> tuple[Array, Array, Array | None]:
        """Attention of one new token a sequence to the cached ones and itself; its key and value join them.

        `bias` carries the mask, for there are no tokens yet at the end of the cache. One key head: all query
        heads of a sequence meet its keys in one matrix product. Returns the output and the caches; without
        `values`, keys are values.
        Shapes: y (b, d), keys and values (b, n, e), bias (b, 1 or h, n), positions (b,)
        -> (b, d), the caches.
        """
        q = rearrange(y @ self.query, "b (h e) -> b h e", h=self.config.heads)
        if self.config.share_kv:
            k = v = y @ self.key_value
        else:
            k, v = y @ self.key, y @ self.value
        if rotation is not None:
            cos, sin = rotation
            q, k = rotate(q, (cos[:, None], sin[:, None])), rotate(k, rotation)
        rows = jnp.arange(len(y))
        keys = keys.at[rows, positions].set(k)
        values = None if values is None else values.at[rows, positions].set(v)
        scores = jnp.einsum("bhe,bne->bhn", widen(q) * q.shape[-1] ** -0.5, widen(keys)) + bias
        weights = jax.nn.softmax(scores, -1)
        attended = jnp.einsum("bhn,bne->bhe", weights, widen(keys if values is None else values)).astype(
            y.dtype
        )
        return rearrange(attended, "b h e -> b (h e)") @ self.out, keys, values
