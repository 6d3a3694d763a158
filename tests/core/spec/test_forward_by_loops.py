"""The referee against PaLM written again with plain Python numbers, one scalar at a time.

Nothing is shared but the config and the weights, and every formula takes another way: complex numbers for
rotary, +m·j for ALiBi, x·σ(x) for swish.
"""

import cmath
import math
import statistics

import numpy as np
import pytest
from cases import ARCHITECTURES, architecture_id, draw_tokens, draw_weights, small

from palm import PaLMConfig
from palm.spec import forward

Vector = list[float]


def times(vector: Vector, matrix: list[Vector]) -> Vector:
    return [
        math.fsum(x * row[o] for x, row in zip(vector, matrix, strict=True)) for o in range(len(matrix[0]))
    ]


def dot(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def norm(x: Vector, scale: Vector, config: PaLMConfig) -> Vector:
    if config.norm == "layernorm":
        mean = statistics.fmean(x)
        x = [value - mean for value in x]
    mean_square = dot(x, x) / len(x)
    eps = config.norm_eps
    root = (
        max(math.sqrt(mean_square), eps) if config.norm_eps_mode == "clamp" else math.sqrt(mean_square + eps)
    )
    return [value / root * g for value, g in zip(x, scale, strict=True)]


def unit(x: Vector, w: dict[str, list], name: str, config: PaLMConfig) -> Vector:
    if not config.qk_norm:
        return x
    return [value / math.sqrt(dot(x, x)) * g for value, g in zip(x, w[name], strict=True)]


def turn(x: Vector, position: int, sign: int, config: PaLMConfig) -> Vector:
    if config.positions == "alibi":
        return x
    turned = []
    for p in range(0, len(x), 2):
        z = complex(x[p], x[p + 1]) * cmath.exp(1j * position / config.rope_theta ** (p / len(x)))
        if config.positions == "xpos":
            z *= ((p + 0.4 * len(x)) / (1.4 * len(x))) ** (sign * position / config.xpos_base)
        turned += [z.real, z.imag]
    return turned


def slope(head: int, config: PaLMConfig) -> float:
    """Of three heads: ALiBi's slopes of two, then the first of four."""
    return (2**-4, 2**-8, 2**-2)[head] if config.positions == "alibi" else 0.0


def attend(queries: list[Vector], keys: list[Vector], values: list[Vector], i: int, m: float) -> Vector:
    scores = [dot(queries[i], keys[j]) / math.sqrt(len(keys[j])) + m * j for j in range(i + 1)]
    exponentials = [math.exp(score - max(scores)) for score in scores]
    total = math.fsum(exponentials)
    return [dot(exponentials, [values[j][c] for j in range(i + 1)]) / total for c in range(len(values[0]))]


def block(xs: list[Vector], w: dict[str, list], prefix: str, config: PaLMConfig) -> list[Vector]:
    ys = [norm(x, w[f"{prefix}.norm"], config) for x in xs]
    key, value = ("key_value", "key_value") if config.share_kv else ("key", "value")
    of_query, of_key = f"{prefix}.attention.query_norm", f"{prefix}.attention.key_norm"
    keys = [unit(times(y, w[f"{prefix}.attention.{key}"]), w, of_key, config) for y in ys]
    keys = [turn(k, i, -1, config) for i, k in enumerate(keys)]
    values = [times(y, w[f"{prefix}.attention.{value}"]) for y in ys]
    projected = [times(y, w[f"{prefix}.attention.query"]) for y in ys]
    e, out = config.dim_head, []
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        merged: Vector = []
        for h in range(config.heads):
            queries = [unit(q[h * e : (h + 1) * e], w, of_query, config) for q in projected]
            queries = [turn(q, position, 1, config) for position, q in enumerate(queries)]
            merged += attend(queries, keys, values, i, slope(h, config))
        attention = times(merged, w[f"{prefix}.attention.out"])
        gate, up = times(y, w[f"{prefix}.feedforward.gate"]), times(y, w[f"{prefix}.feedforward.up"])
        gated = [g * (1 + math.tanh(g / 2)) / 2 * u for g, u in zip(gate, up, strict=True)]
        feedforward = times(gated, w[f"{prefix}.feedforward.down"])
        out.append([sum(parts) for parts in zip(x, attention, feedforward, strict=True)])
    return out


def logits(config: PaLMConfig, weights: dict[str, np.ndarray], tokens: list[int]) -> list[Vector]:
    w = {name: array.tolist() for name, array in weights.items()}
    xs = [w["embedding"][token] for token in tokens]
    for i in range(config.depth):
        xs = block(xs, w, f"blocks.{i}", config)
    matrix = np.transpose(w["embedding"]).tolist() if config.tie_embeddings else w["unembedding"]
    divisor = math.sqrt(config.dim) if config.init == "paper" else 1.0
    return [[z / divisor for z in times(norm(x, w["norm"], config), matrix)] for x in xs]


@pytest.mark.parametrize("choices", ARCHITECTURES, ids=architecture_id)
def test_the_referee_is_palm_written_with_plain_numbers(choices):
    # An eps large enough to be seen, and to clamp some rows of the "reference" start and not others.
    config = small(**choices, norm_eps=0.02, rope_theta=50.0, xpos_base=3.0)
    weights, tokens = draw_weights(config, seed=2), draw_tokens(config, 6)
    expected = logits(config, weights, tokens.tolist())
    actual = forward.activations(config, weights, tokens)["logits"]
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-13)
