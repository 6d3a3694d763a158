"""A port of palm's function as others write it, in NumPy, PyTorch or JAX, in any precision, right or wrong.

What varies between right ports: fused or separate products, norms and scores in float32 or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import palm
from palm.spec.positions import alibi_slopes

FRAMEWORKS = ("numpy", "torch", "jax")
# What a port does wrong -> the positions it is a fault of, None for any.
FAULTS: dict[str, str | None] = {
    "θ × 1.5": "rotary",
    "θ × 50": "rotary",
    "partial rotary": "rotary",
    "positions from 1 for queries": "rotary",
    "half-split pairs": "rotary",
    "no rotary on keys": "rotary",
    "slopes × 1.1": "alibi",
    "slopes in reverse": "alibi",
    "no bias": "alibi",
    "scale × 1.05": None,
    "scale × 1.1": None,
    "scale twice": None,
    "sees the next": None,
    "window 16": None,
    "fill −1": None,
    "gelu": None,
    "gelu tanh": None,
    "quick gelu": None,
    "relu": None,
    "no gate": None,
    "gate and up swapped": None,
    "eps × 1000": None,
    "other mean": None,
    "variance over d − 1": None,
    "no norm scale": None,
    "serial block": None,
    "half residual": None,
    "no final norm": None,
    "embedding × 1.1": None,
    "logits × 1.05": None,
    "softcap 2": None,
    "query heads (d h)": None,
}


def port(
    cfg: palm.PaLMConfig,
    weights: dict[str, np.ndarray],
    framework: str,
    dtype: str,
    fault: str = "",
    *,
    upcast: bool = True,
    fused: bool = False,
) -> Callable[[np.ndarray], Any]:
    """ids -> logits. `upcast`: norms, rotations and softmax in float32 at least. `fused`: one product."""
    xp = _SHIMS[framework](dtype)
    w = {name: xp.array(np.asarray(array, np.float64)) for name, array in weights.items()}
    model = _Port(cfg, w, xp, fault, upcast, fused)

    def my_port(ids: np.ndarray) -> Any:
        with np.errstate(all="ignore"):
            return model(ids)

    return my_port


class _Port:
    def __init__(self, cfg: Any, w: dict[str, Any], xp: Any, fault: str, upcast: bool, fused: bool) -> None:
        self.cfg, self.w, self.xp, self.fault, self.fused = cfg, w, xp, fault, fused
        self.up = xp.wide if upcast else lambda x: x

    def __call__(self, ids: np.ndarray) -> Any:
        cfg, w, xp = self.cfg, self.w, self.xp
        x = xp.low(xp.rows(w["embedding"], ids) * (1.1 if self.fault == "embedding × 1.1" else 1.0))
        for i in range(cfg.depth):
            x = self.block(x, f"blocks.{i}.")
        y = x if self.fault == "no final norm" else self.norm(x, w["norm"])
        matrix = xp.t(w["embedding"]) if cfg.tie_embeddings else w["unembedding"]
        z = xp.dot(y, matrix) * (cfg.logit_scale * (1.05 if self.fault == "logits × 1.05" else 1))
        return xp.low(2 * xp.tanh(xp.wide(z) / 2) if self.fault == "softcap 2" else z)

    def block(self, x: Any, b: str) -> Any:
        xp = self.xp
        y = self.norm(x, self.w[b + "norm"])
        attended = self.attention(y, b + "attention.")
        if self.fault == "serial block":
            x = x + attended
            return x + self.feedforward(self.norm(x, self.w[b + "norm"]), b + "feedforward.")
        branches = attended + self.feedforward(y, b + "feedforward.")
        return x + xp.low(branches * (0.5 if self.fault == "half residual" else 1.0))

    def norm(self, x: Any, g: Any) -> Any:
        cfg, xp = self.cfg, self.xp
        y = self.up(x)
        if (cfg.norm == "layernorm") != (self.fault == "other mean"):
            y = y - xp.mean(y)
        square = xp.mean(y * y)
        if self.fault == "variance over d − 1":
            square = square * (cfg.dim / (cfg.dim - 1))
        eps = cfg.eps * (1000 if self.fault == "eps × 1000" else 1)
        root = xp.sqrt(square + eps) if cfg.norm_eps_mode == "add" else xp.floor(xp.sqrt(square), eps)
        return xp.low(y / root) if self.fault == "no norm scale" else xp.low(y / root * self.up(g))

    def attention(self, y: Any, p: str) -> Any:
        cfg, w, xp = self.cfg, self.w, self.xp
        h, e = cfg.heads, cfg.dim_head
        names = ["query", "key_value"] if cfg.share_kv else ["query", "key", "value"]
        if self.fused:
            made = xp.dot(y, xp.join([w[p + name] for name in names]))
            parts = [made[..., : h * e], made[..., h * e : h * e + e], made[..., h * e + e :]]
        else:
            parts = [xp.dot(y, w[p + name]) for name in names]
        q, k, v = parts[0], parts[1], parts[1] if cfg.share_kv else parts[2]
        n = q.shape[-2]
        if self.fault == "query heads (d h)":
            q = xp.swap(xp.swap(q.reshape(*q.shape[:-1], e, h), -1, -2), -2, -3)
        else:
            q = xp.swap(q.reshape(*q.shape[:-1], h, e), -2, -3)
        if cfg.positions == "rotary":
            q = self.rotated(q, 1 if self.fault == "positions from 1 for queries" else 0)
            k = k if self.fault == "no rotary on keys" else self.rotated(k, 0)
        scale = {"scale × 1.05": 1.05, "scale × 1.1": 1.1, "scale twice": e**-0.5}.get(self.fault, 1)
        s = self.up(xp.dot(q, xp.swap(k[..., None, :, :], -1, -2))) * (e**-0.5 * scale)
        i = np.arange(n)
        seen = i[None, :] <= i[:, None] + (self.fault == "sees the next")
        if self.fault == "window 16":
            seen &= i[:, None] - i[None, :] < 16
        if cfg.positions == "alibi" and self.fault != "no bias":
            slopes = alibi_slopes(h)[:: -1 if self.fault == "slopes in reverse" else 1]
            slopes = slopes * (1.1 if self.fault == "slopes × 1.1" else 1)
            s = s + xp.like(np.where(seen, -slopes[:, None, None] * (i[:, None] - i), 0.0), s)
        s = xp.where(seen, s, -1.0 if self.fault == "fill −1" else -1e30 if s.dtype != xp.half else -6e4)
        o = xp.swap(xp.dot(xp.low(xp.softmax(s)), v[..., None, :, :]), -2, -3)
        return xp.dot(o.reshape(*o.shape[:-2], h * e), w[p + "out"])

    def rotated(self, x: Any, first: int) -> Any:
        cfg, xp = self.cfg, self.xp
        n, e = x.shape[-2], cfg.dim_head
        theta = cfg.rope_theta * {"θ × 1.5": 1.5, "θ × 50": 50.0}.get(self.fault, 1.0)
        frequencies = theta ** (-np.arange(0, e, 2) / e)
        if self.fault == "partial rotary":
            frequencies[e // 4 :] = 0
        angles = (first + np.arange(n))[:, None] * frequencies
        y = self.up(x)
        cos, sin = xp.like(np.cos(angles), y), xp.like(np.sin(angles), y)
        if self.fault == "half-split pairs":
            a, b = y[..., : e // 2], y[..., e // 2 :]
            return xp.low(xp.join([a * cos - b * sin, b * cos + a * sin]))
        a, b = y[..., ::2], y[..., 1::2]
        return xp.low(xp.stack([a * cos - b * sin, b * cos + a * sin]).reshape(x.shape))

    def feedforward(self, y: Any, p: str) -> Any:
        w, xp = self.w, self.xp
        if self.fused:
            made = xp.dot(y, xp.join([w[p + "gate"], w[p + "up"]]))
            gate, up = made[..., : self.cfg.ff_dim], made[..., self.cfg.ff_dim :]
        else:
            gate, up = xp.dot(y, w[p + "gate"]), xp.dot(y, w[p + "up"])
        if self.fault == "gate and up swapped":
            gate, up = up, gate
        product = self.activated(gate) * (1 if self.fault == "no gate" else self.up(up))
        return xp.dot(xp.low(product), w[p + "down"])

    def activated(self, gate: Any) -> Any:
        xp, x = self.xp, self.up(gate)
        if self.fault == "gelu":
            return 0.5 * x * (1 + xp.erf(x / 2**0.5))
        if self.fault == "gelu tanh":
            return 0.5 * x * (1 + xp.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x * x * x)))
        if self.fault == "relu":
            return xp.floor(x, 0.0)
        return x / (1 + xp.exp(-(1.702 if self.fault == "quick gelu" else 1.0) * x))


class _Arrays:
    """What NumPy and JAX have in common; `xp` is the one or the other."""

    xp: Any
    dtype: Any

    @property
    def wider(self) -> Any:
        return self.xp.promote_types(self.dtype, np.float32)

    def array(self, x: Any) -> Any:
        return self.xp.asarray(x, self.dtype)

    low = array

    def dot(self, a: Any, b: Any) -> Any:
        return (a @ b).astype(a.dtype)  # of bfloat16, NumPy makes float32

    def wide(self, x: Any) -> Any:
        return x.astype(self.wider)

    def join(self, x: Any) -> Any:
        return self.xp.concatenate(x, -1)

    def stack(self, x: Any) -> Any:
        return self.xp.stack(x, -1)

    def rows(self, table: Any, ids: Any) -> Any:
        return table[ids]

    def t(self, x: Any) -> Any:
        return x.T

    def mean(self, x: Any) -> Any:
        return x.mean(-1, keepdims=True)

    def like(self, x: Any, other: Any) -> Any:
        return self.xp.asarray(x, other.dtype)

    def where(self, seen: Any, x: Any, fill: float) -> Any:
        return self.xp.where(seen, x, self.xp.asarray(fill, x.dtype))


class _Numpy(_Arrays):
    xp = np
    half = np.dtype(np.float16)
    exp, sqrt, tanh, floor, swap = map(staticmethod, (np.exp, np.sqrt, np.tanh, np.maximum, np.swapaxes))
    erf = staticmethod(np.vectorize(math.erf))

    def __init__(self, dtype: str) -> None:
        self.dtype = np.dtype(dtype)

    def softmax(self, x: Any) -> Any:
        x = np.exp(x - x.max(-1, keepdims=True))
        return x / x.sum(-1, keepdims=True)


class _Torch:
    half = torch.float16

    def __init__(self, dtype: str) -> None:
        self.dtype = getattr(torch, dtype)
        self.wider = torch.promote_types(self.dtype, torch.float32)

    def array(self, x: Any) -> Any:
        return torch.tensor(x, dtype=self.dtype)

    def wide(self, x: Any) -> Any:
        return x.to(self.wider)

    def low(self, x: Any) -> Any:
        return x.to(self.dtype)

    def dot(self, a: Any, b: Any) -> Any:
        return a @ b

    exp, sqrt, tanh, erf = torch.exp, torch.sqrt, torch.tanh, torch.erf

    def floor(self, x: Any, low: float) -> Any:
        return x.clamp(min=low)

    def swap(self, x: Any, a: int, b: int) -> Any:
        return x.transpose(a, b)

    def join(self, x: Any) -> Any:
        return torch.cat(x, -1)

    def stack(self, x: Any) -> Any:
        return torch.stack(x, -1)

    def rows(self, table: Any, ids: Any) -> Any:
        return table[torch.as_tensor(ids)]

    def t(self, x: Any) -> Any:
        return x.T

    def mean(self, x: Any) -> Any:
        return x.mean(-1, keepdim=True)

    def like(self, x: Any, other: Any) -> Any:
        return torch.tensor(x, dtype=other.dtype)

    def where(self, seen: Any, x: Any, fill: float) -> Any:
        return x.masked_fill(~torch.as_tensor(seen), fill)

    def softmax(self, x: Any) -> Any:
        return x.softmax(-1)


class _Jax(_Arrays):
    xp = jnp
    half = jnp.float16
    exp, sqrt, tanh, erf = map(staticmethod, (jnp.exp, jnp.sqrt, jnp.tanh, jax.scipy.special.erf))
    floor, swap = map(staticmethod, (jnp.maximum, jnp.swapaxes))

    def __init__(self, dtype: str) -> None:
        self.dtype = jnp.dtype(dtype)

    def softmax(self, x: Any) -> Any:
        return jax.nn.softmax(x, -1)


_SHIMS: dict[str, Any] = {"numpy": _Numpy, "torch": _Torch, "jax": _Jax}
