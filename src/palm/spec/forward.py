"""The referee: PaLM's whole forward pass in NumPy float64, slow and obvious. It is the specification.

Letters: n sequence, i query position, j key position, d dim, h heads, e dim_head, f ff_mult·dim,
v num_tokens; `...` any batch dimensions. Every matrix is applied from the right.
Source: PaLM (arXiv:2204.02311) §2.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from palm.config import PaLMConfig
from palm.spec.parameters import check_array, check_names, parameters
from palm.spec.positions import alibi_slopes, rotary_table
from palm.spec.tokens import check_tokens

Weights = Mapping[str, np.ndarray]


def normalise(x: np.ndarray, scale: np.ndarray, config: PaLMConfig) -> np.ndarray:
    """x / denominator · scale; LayerNorm first subtracts the mean. No bias.

    m = mean(x²); the denominator is max(sqrt(m), eps) ("clamp") or sqrt(m + eps) ("add").
    """
    if config.norm == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    mean_square = (x**2).mean(-1, keepdims=True)
    if config.norm_eps_mode == "clamp":
        return x / np.maximum(np.sqrt(mean_square), config.eps) * scale
    return x / np.sqrt(mean_square + config.eps) * scale


def rotate(x: np.ndarray, config: PaLMConfig) -> np.ndarray:
    """Rotary: turn each pair (2p, 2p+1) of x (..., n, e) by the angle i·θ^(-2p/e)."""
    cos, sin = rotary_table(x.shape[-2], config.dim_head, config.rope_theta)
    a, b = x[..., 0::2], x[..., 1::2]
    return np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


def position_bias(n: int, config: PaLMConfig) -> np.ndarray:
    """What is added to the scores, (h, n, n): −m_h·(i − j) with ALiBi, and −inf where j > i."""
    distance = np.arange(n)[:, None] - np.arange(n)[None, :]
    slopes = alibi_slopes(config.heads) if config.positions == "alibi" else np.zeros(config.heads)
    return np.where(distance >= 0, -slopes[:, None, None] * distance, -np.inf)


def softmax(scores: np.ndarray) -> np.ndarray:
    """exp(s) / Σ exp(s) over the last axis."""
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attention(y: np.ndarray, weights: Weights, config: PaLMConfig) -> dict[str, np.ndarray]:
    """Causal multi-query attention: h query heads, one key head, one value head.

    softmax((q·e^-1/2) kᵀ + position_bias) v, heads merged, then the output matrix. Rotary turns queries and
    keys, never values, also where both come from one tensor.
    """
    key, value = ("key_value", "key_value") if config.share_kv else ("key", "value")
    q = y @ weights["attention.query"]
    q = q.reshape(*q.shape[:-1], config.heads, config.dim_head).swapaxes(-2, -3)  # (..., h, n, e)
    k, v = y @ weights[f"attention.{key}"], y @ weights[f"attention.{value}"]
    if config.positions == "rotary":
        q, k = rotate(q, config), rotate(k, config)
    k, v = k[..., None, :, :], v[..., None, :, :]  # the one head that all query heads share
    scores = (q * config.dim_head**-0.5) @ k.swapaxes(-1, -2) + position_bias(y.shape[-2], config)
    attended = merge_heads(softmax(scores) @ v)
    return {
        "q": merge_heads(q),
        "k": k[..., 0, :, :],
        "v": v[..., 0, :, :],
        "attention": attended,
        "attention_out": attended @ weights["attention.out"],
    }


def feedforward(y: np.ndarray, weights: Weights) -> dict[str, np.ndarray]:
    """SwiGLU: (swish(y W_gate) · (y W_up)) W_down, swish(x) = x / (1 + e^-x)."""
    product = gated(y @ weights["feedforward.gate"], y @ weights["feedforward.up"])
    return {"feedforward": product, "feedforward_out": product @ weights["feedforward.down"]}


def gated(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """swish(gate) · up."""
    with np.errstate(over="ignore"):  # where e^-x is infinite, the quotient is rightly 0
        return gate / (1 + np.exp(-gate)) * up


def block(x: np.ndarray, weights: Weights, config: PaLMConfig) -> dict[str, np.ndarray]:
    """The parallel block: x + attention(norm(x)) + feedforward(norm(x)); one norm for both branches."""
    y = normalise(x, weights["norm"], config)
    taps = {"norm": y, **attention(y, weights, config), **feedforward(y, weights)}
    return {**taps, "out": x + taps["attention_out"] + taps["feedforward_out"]}


def activations(config: PaLMConfig, weights: Weights, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Every tap of the forward pass, in dataflow order; the last is `logits` (..., n, v).

    Raises `ConfigError`, `WeightsError` or `TokenError` for what does not fit together.
    """
    tokens = check_tokens(tokens, config)
    weights = widen(config, weights)
    taps = {"embed": weights["embedding"][tokens]}
    x = taps["embed"]
    for i in range(config.depth):
        for name, value in block(x, block_weights(weights, i), config).items():
            taps[f"blocks.{i}.{name}"] = value
        x = taps[f"blocks.{i}.out"]
    taps["norm"] = normalise(x, weights["norm"], config)
    taps["logits"] = taps["norm"] @ output_matrix(config, weights) * config.logit_scale
    return taps


def output_matrix(config: PaLMConfig, weights: Weights) -> np.ndarray:
    """The (d, v) matrix to logits: the transposed embedding, or the untied one."""
    return weights["embedding"].T if config.tie_embeddings else weights["unembedding"]


def widen(config: PaLMConfig, weights: Weights) -> dict[str, np.ndarray]:
    """Checked weights in float64."""
    check_names(config, weights)
    for name, parameter in parameters(config).items():
        check_array(parameter, weights[name])
    return {name: np.asarray(array, np.float64) for name, array in weights.items()}


def block_weights(weights: Weights, i: int) -> dict[str, np.ndarray]:
    """The weights of block i under their names inside the block."""
    prefix = f"blocks.{i}."
    return {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}


def merge_heads(x: np.ndarray) -> np.ndarray:
    """(..., h, n, e) -> (..., n, h·e)."""
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)
