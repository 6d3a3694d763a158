"""Wrong mathematics of scores. Letters: n sequence, i query, j key, h heads, e dim_head."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch
from faults.inject import bfloat16, cast, constant, wide
from faults.kinds import UNKNOWN, far_from_one, kind, log_uniform

ALIBI = {"positions": "alibi"}


def attend(
    lib: Any,
    q: Any,
    k: Any,
    v: Any,
    bias: np.ndarray,
    *,
    scale: Any = 1.0,
    rough: Callable[[Any], Any] = lambda bias: bias,
) -> Any:
    """Attention with a bias formed in float64 here; `scale` multiplies the queries."""
    h, n, e = q.shape[-3:]
    added = rough(constant(lib, np.broadcast_to(bias, (h, n, n)).copy(), q))
    scores = lib.einsum("...hie,...je->...hij", wide(q) * scale / math.sqrt(e), wide(k)) + added
    scores = scores - (scores.amax(-1, keepdim=True) if lib is torch else scores.max(-1, keepdims=True))
    weight = lib.exp(scores)
    weight = weight / weight.sum(-1, keepdims=True)
    return cast(lib.einsum("...hij,...je->...hie", weight, wide(v)), q.dtype)


def slopes(h: int) -> list[float]:
    """As the paper's code has them."""
    if h & (h - 1) == 0:
        return [(2.0 ** (-8.0 / h)) ** (k + 1) for k in range(h)]
    p = 2 ** math.floor(math.log2(h))
    return slopes(p) + slopes(2 * p)[0::2][: h - p]


def distances(n: int) -> np.ndarray:
    return np.subtract.outer(np.arange(n), np.arange(n)).astype(float)


def alibi(config: Any, n: int, slope: Any = None) -> np.ndarray:
    """The config's bias without the mask, or with other slopes."""
    if slope is None:
        slope = slopes(config.heads) if config.positions == "alibi" else np.zeros(config.heads)
    return -np.asarray(slope, float)[:, None, None] * distances(n)


def causal(bias: np.ndarray, until: int = 0, fill: float = -np.inf) -> np.ndarray:
    return np.where(distances(bias.shape[-1]) >= -until, bias, fill)


def sloped(rule: Callable[[int], Any]) -> Callable[..., Any]:
    def wrong(lib: Any, right: Any, q: Any, k: Any, v: Any, bias: Any, cfg: Any) -> Any:
        return attend(lib, q, k, v, causal(alibi(cfg, q.shape[-2], rule(cfg.heads))))

    return wrong


@kind("ALiBi sign", "ALiBi sign", "attend", config=ALIBI)
def sign(rng, config):
    return "attention", sloped(lambda h: -np.array(slopes(h)))


@kind("ALiBi offset", "ALiBi offset", "attend", config=ALIBI)
def offset(rng, config):
    by = int(rng.choice([-1, 1]))
    return "attention", sloped(lambda h: [2.0 ** (-8.0 / h * (k + 1 + by)) for k in range(h)])


# Where the number of heads is a power of two the rules are one.
@kind("ALiBi slope rule", "ALiBi slopes", "attend", config={**ALIBI, "heads": (3, 5, 6, 7)})
def rule(rng, config):
    def truncated(h: int) -> list[float]:
        return slopes(2 ** math.ceil(math.log2(h)))[:h]

    def single(h: int) -> list[float]:
        return [2.0 ** (-8.0 / h * (k + 1)) for k in range(h)]

    def going_on(h: int) -> list[float]:
        p = 2 ** math.floor(math.log2(h))
        return [2.0 ** (-8.0 / p * (k + 1)) for k in range(h)]

    def odd(h: int) -> list[float]:
        p = 2 ** math.floor(math.log2(h))
        return slopes(p) + slopes(2 * p)[1::2][: h - p]

    return "attention", sloped([truncated, single, going_on, odd][rng.integers(4)])


@kind("ALiBi stretched", "ALiBi slopes", "attend", config=ALIBI)
def stretched(rng, config):
    factor = far_from_one(rng)
    return "attention", sloped(lambda h: factor * np.array(slopes(h)))


# bfloat16 holds the slopes of powers of two, and whole numbers up to 256: then nothing would be lost.
@kind(
    "ALiBi in bfloat16",
    "positions in bfloat16",
    "attend",
    config={**ALIBI, "heads": (3, 5, 6, 7)},
    lossy=True,
    length=280,
)
def rough_alibi(rng, config):
    whole = rng.random() < 0.5

    def wrong(lib, right, q, k, v, bias, cfg):
        n = q.shape[-2]
        if whole:
            return attend(lib, q, k, v, causal(alibi(cfg, n)), rough=lambda b: bfloat16(lib, b))
        rows = np.arange(n).astype(ml_dtypes.bfloat16).astype(float)
        distance = rows[:, None] - rows
        return attend(lib, q, k, v, causal(-np.array(slopes(cfg.heads))[:, None, None] * distance))

    return "attention", wrong


@kind("query scale of others", "query scale", "attend")
def scale_of_others(rng, config):
    e = config.dim_head
    factor = [e**0.5, e**-0.5, (e / config.dim) ** 0.5][rng.integers(3)]
    return "attention", lambda lib, right, q, k, v, bias, cfg: right(q * factor, k, v, bias, cfg)


@kind("query scale, any", "query scale", "attend")
def any_scale(rng, config):
    factor = far_from_one(rng)
    return "attention", lambda lib, right, q, k, v, bias, cfg: right(q * factor, k, v, bias, cfg)


@kind("mask off by one", "mask", "attend")
def off_by_one(rng, config):
    by = int(rng.choice([-1, 1]))

    def wrong(lib, right, q, k, v, bias, cfg):
        seen = causal(alibi(cfg, q.shape[-2]), by)
        seen[:, 0, 0] = 0.0  # a row that sees nothing has no softmax
        return attend(lib, q, k, v, seen)

    return "attention", wrong


@kind("mask fill", "mask fill", "attend")
def finite_fill(rng, config):
    fill, is_added = -log_uniform(rng, 0.1, 8.0), rng.random() < 0.5

    def wrong(lib, right, q, k, v, bias, cfg):
        open_ = alibi(cfg, q.shape[-2])
        return attend(lib, q, k, v, causal(open_, fill=open_ + fill if is_added else fill))

    return "attention", wrong


@kind("a temperature a head", UNKNOWN, "attend", config={"heads": (2, 3, 5, 6, 8)})
def temperatures(rng, config):
    per_head = np.exp(rng.uniform(-1, 1, (config.heads, 1, 1)))
    return "attention", lambda lib, right, q, k, v, bias, cfg: right(
        cast(wide(q) * constant(lib, per_head, q), q.dtype), k, v, bias, cfg
    )


@kind("a squared softmax", UNKNOWN, "attend")
def squared(rng, config):
    def wrong(lib, right, q, k, v, bias, cfg):
        plain = causal(alibi(cfg, q.shape[-2]))
        scores = lib.einsum("...hie,...je->...hij", wide(q) / q.shape[-1] ** 0.5, wide(k))
        weight = (1 + lib.abs(scores)) * constant(lib, np.exp(plain), q)
        weight = weight / weight.sum(-1, keepdims=True)
        return cast(lib.einsum("...hij,...je->...hie", weight, wide(v)), q.dtype)

    return "attention", wrong


@kind("a window", "attention window", "attend")
def window(rng, config):
    width = int(rng.integers(3, 9))

    def wrong(lib, right, q, k, v, bias, cfg):
        plain = causal(alibi(cfg, q.shape[-2]))
        return attend(lib, q, k, v, np.where(distances(q.shape[-2]) < width, plain, -np.inf))

    return "attention", wrong
