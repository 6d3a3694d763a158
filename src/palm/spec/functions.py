"""The functions that PaLM's layers are made of, in NumPy float64, slow and obvious.

Letters: n sequence, i query position, j key position, d dim, h heads, e dim_head, p pair; `...` any batch
dimensions. Source: PaLM (arXiv:2204.02311) §2.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Inexact

from palm.config import PaLMConfig
from palm.spec.arrays import Named
from palm.spec.positions import alibi_slopes, rotary_table, xpos_table


def normalise(
    x: Inexact[np.ndarray, "... d"], scale: Inexact[np.ndarray, "d"], config: PaLMConfig
) -> Inexact[np.ndarray, "... d"]:
    """x / denominator · scale; LayerNorm first subtracts the mean. No bias.

    m = mean(x²); the denominator is max(sqrt(m), eps) ("clamp") or sqrt(m + eps) ("add").
    """
    if config.norm == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    mean_square = (x**2).mean(-1, keepdims=True)
    if config.norm_eps_mode == "clamp":
        return x / np.maximum(np.sqrt(mean_square), config.eps) * scale
    return x / np.sqrt(mean_square + config.eps) * scale


def unit(x: Inexact[np.ndarray, "... e"], scale: Inexact[np.ndarray, "e"]) -> Inexact[np.ndarray, "... e"]:
    """x / max(‖x‖, 1e-12) · scale, the norm of queries and keys over each head."""
    return x / np.maximum(np.sqrt((x**2).sum(-1, keepdims=True)), 1e-12) * scale


def position_step(
    x: Inexact[np.ndarray, "... n e"], config: PaLMConfig, *, keys: bool
) -> Inexact[np.ndarray, "... n e"]:
    """What positions do to queries or keys (..., n, e): rotary and xPos, or nothing with ALiBi."""
    return rotate(x, config) * stretch(x.shape[-2], config, keys=keys) if config.rotates else x


def stretch(n: int, config: PaLMConfig, *, keys: bool) -> np.ndarray:
    """xPos's factors on rotated queries, s_p^(i / xpos_base), or on keys, their inverse; else 1: (n, e)."""
    if config.positions != "xpos":
        return np.ones(())
    table = np.repeat(xpos_table(n, config.dim_head, config.xpos_base), 2, -1)
    return 1 / table if keys else table


def rotate(x: Inexact[np.ndarray, "... n e"], config: PaLMConfig) -> Inexact[np.ndarray, "... n e"]:
    """Rotary: rotate each pair (2p, 2p+1) of x (..., n, e) by the angle i·θ^(-2p/e)."""
    cos, sin = rotary_table(x.shape[-2], config.dim_head, config.rope_theta)
    a, b = x[..., 0::2], x[..., 1::2]
    return np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


def position_bias(
    n: int, config: PaLMConfig, segments: np.ndarray | None = None
) -> Inexact[np.ndarray, "... {config.heads} {n} {n}"]:
    """The bias on the scores, (h, n, n): −m_h·(i − j) with ALiBi, otherwise 0; −inf where j > i.

    With segments (..., n) it is (..., h, n, n), and −inf where i and j are of different segments, too.
    """
    distance = np.arange(n)[:, None] - np.arange(n)[None, :]
    slopes = alibi_slopes(config.heads) if config.positions == "alibi" else np.zeros(config.heads)
    bias = np.where(distance >= 0, -slopes[:, None, None] * distance, -np.inf)
    if segments is None:
        return bias
    return np.where(segments[..., None, :, None] == segments[..., None, None, :], bias, -np.inf)


def softmax(scores: Inexact[np.ndarray, "... j"]) -> Inexact[np.ndarray, "... j"]:
    """exp(s) / Σ exp(s) over the last axis."""
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def gated(
    gate: Inexact[np.ndarray, "... f"], up: Inexact[np.ndarray, "... f"]
) -> Inexact[np.ndarray, "... f"]:
    """SwiGLU's gate: swish(gate) · up, swish(x) = x / (1 + e^-x)."""
    with np.errstate(over="ignore"):  # where e^-x is infinite, the quotient is rightly 0
        return gate / (1 + np.exp(-gate)) * up


def split_heads(
    x: Inexact[np.ndarray, "... n {config.heads}*{config.dim_head}"], config: PaLMConfig
) -> Inexact[np.ndarray, "... {config.heads} n {config.dim_head}"]:
    """(..., n, h·e) -> (..., h, n, e)."""
    return x.reshape(*x.shape[:-1], config.heads, config.dim_head).swapaxes(-2, -3)


def merge_heads(x: Inexact[np.ndarray, "... h n e"]) -> Inexact[np.ndarray, "... n h*e"]:
    """(..., h, n, e) -> (..., n, h·e)."""
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)


def output_matrix(
    config: PaLMConfig, weights: Named
) -> Inexact[np.ndarray, "{config.dim} {config.num_tokens}"]:
    """The (d, v) matrix to logits: the transposed embedding, or the untied one."""
    return weights["embedding"].T if config.tie_embeddings else weights["unembedding"]
