"""A port of a small rotary PaLM to NumPy, each part of which can be another's."""

from __future__ import annotations

from typing import Any

import numpy as np

import palm
from palm.spec.arrays import Arrays

CONFIG = palm.PaLMConfig(
    num_tokens=37, dim=32, depth=2, heads=4, dim_head=8, ff_mult=2, init="reference"
).resolve("jax")


class Port:
    """The model of the config `c` in NumPy."""

    __name__ = "my_port"
    c = CONFIG

    def __init__(self, weights: Arrays) -> None:
        self.w = weights

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        x = self.w["embedding"][self.ids(ids)]
        for i in range(self.c.depth):
            x = self.block(x, f"blocks.{i}.")
        return self.head(self.logits(x) * np.float32(self.c.logit_scale))

    def ids(self, ids: np.ndarray) -> np.ndarray:
        return ids

    def logits(self, x: np.ndarray) -> np.ndarray:
        return self.unembedded(self.last(x))

    def last(self, x: np.ndarray) -> np.ndarray:
        return self.norm(x, self.w["norm"])

    def unembedded(self, x: np.ndarray) -> np.ndarray:
        return x @ (self.w["embedding"].T if self.c.tie_embeddings else self.w["unembedding"])

    def head(self, logits: np.ndarray) -> np.ndarray:
        return logits

    def root(self, square: np.ndarray) -> np.ndarray:
        return np.sqrt(square + self.c.eps)

    def norm(self, x: np.ndarray, g: np.ndarray) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        return (x / self.root((x * x).mean(-1, keepdims=True)) * g).astype(x.dtype)

    def block(self, x: np.ndarray, b: str) -> np.ndarray:
        y = self.norm(x, self.w[b + "norm"])
        return x + self.attention(y, b) + self.feedforward(y, b)

    def split(self, q: np.ndarray) -> np.ndarray:
        return q.reshape(*q.shape[:-1], self.c.heads, self.c.dim_head).swapaxes(-2, -3)

    def merge(self, o: np.ndarray) -> np.ndarray:
        o = o.swapaxes(-2, -3)
        return o.reshape(*o.shape[:-2], -1)

    def frequencies(self) -> np.ndarray:
        e = self.c.dim_head
        return self.c.rope_theta ** (-np.arange(0, e, 2) / e)

    def angles(self, n: int) -> np.ndarray:
        return np.arange(n)[:, None] * self.frequencies()

    def tables(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        angles = self.angles(x.shape[-2])
        return np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)

    def turned(self, x: np.ndarray) -> np.ndarray:
        cos, sin = self.tables(x)
        a, b = x[..., ::2], x[..., 1::2]
        return np.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)

    def value(self, v: np.ndarray) -> np.ndarray:
        return v

    def seen(self, n: int) -> np.ndarray:
        return np.tri(n, dtype=bool)

    def scaled(self, q: np.ndarray) -> np.ndarray:
        return q * np.float32(self.c.dim_head**-0.5)

    def scores(self, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        return self.scaled(q) @ k.swapaxes(-1, -2)

    def softmax(self, s: np.ndarray) -> np.ndarray:
        s = np.exp(s - s.max(-1, keepdims=True))
        return s / s.sum(-1, keepdims=True)

    def projection(self, b: str, name: str) -> np.ndarray:
        return self.w[f"{b}attention.{name}"]

    def attention(self, y: np.ndarray, b: str) -> np.ndarray:
        q, k, v = (y @ self.projection(b, name) for name in ("query", "key", "value"))
        s = self.scores(self.turned(self.split(q)), self.turned(k)[..., None, :, :])
        s = np.where(self.seen(y.shape[-2]), s, np.float32(self.fill))
        o = self.softmax(s) @ self.value(v)[..., None, :, :]
        return self.merge(o) @ self.w[b + "attention.out"]

    fill = -np.inf

    def act(self, gate: np.ndarray) -> np.ndarray:
        return gate / (1 + np.exp(-gate))

    def gated(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        return self.act(gate) * up

    def feedforward(self, y: np.ndarray, b: str) -> np.ndarray:
        gate, up = (y @ self.w[f"{b}feedforward.{name}"] for name in ("gate", "up"))
        return self.gated(gate, up).astype(y.dtype) @ self.w[b + "feedforward.down"]


def changed(**parts: Any) -> type[Port]:
    return type("Changed", (Port,), parts)
