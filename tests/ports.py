"""Ports of palm as others write them, in NumPy, PyTorch and JAX, each right or with a mistake of its own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import palm

ROTARY = palm.PaLMConfig(num_tokens=37, dim=24, depth=2, heads=3, dim_head=8, init="reference").resolve("jax")
ALIBI = palm.PaLMConfig(num_tokens=37, dim=24, depth=2, heads=6, dim_head=8, norm_eps=1e-6).resolve("torch")


def in_numpy(
    cfg: palm.PaLMConfig, w: dict[str, np.ndarray], ids: np.ndarray, mistake: str = "", value: float = 1e-3
) -> np.ndarray:
    """A rotary port in NumPy, in the precision of the weights, one pair at a time where that is plainest."""
    n, h, e = ids.shape[-1], cfg.heads, cfg.dim_head

    def norm(x, g):
        x = x if mistake == "mean" else x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + (value if mistake == "eps" else 1e-5)) * g

    def turn(x):
        out = x.copy()
        for i in range(n):
            for p in range(e // 2):
                angle = i * 10_000 ** (-2 * p / e)
                a, b = (p, p + e // 2) if mistake == "layout" else (2 * p, 2 * p + 1)
                out[..., i, a] = x[..., i, a] * np.cos(angle) - x[..., i, b] * np.sin(angle)
                out[..., i, b] = x[..., i, b] * np.cos(angle) + x[..., i, a] * np.sin(angle)
        return out

    x = w["embedding"][ids] * (value if mistake == "embedding" else 1)
    for layer in range(cfg.depth):
        b = f"blocks.{layer}."
        y = norm(x, w[b + "norm"])
        k, v = turn(y @ w[b + "attention.key"]), y @ w[b + "attention.value"]
        heads = []
        for head in range(h):
            q = turn(y @ w[b + "attention.query"][:, head * e : (head + 1) * e])
            s = q @ k.swapaxes(-1, -2) * {"scale": 1, "other scale": value}.get(mistake, e**-0.5)
            s = np.where(np.tri(n, k=1 if mistake == "mask" else 0) > 0, s, -np.inf)
            s = np.exp(s - s.max(-1, keepdims=True))
            heads.append(s / s.sum(-1, keepdims=True) @ v)
        gate, up = y @ w[b + "feedforward.gate"], y @ w[b + "feedforward.up"]
        x = (
            x
            + np.concatenate(heads, -1) @ w[b + "attention.out"]
            + (gate / (1 + np.exp(-gate)) * up) @ w[b + "feedforward.down"]
        )
    return norm(x, w["norm"]) @ w["embedding"].T


def in_torch(
    cfg: palm.PaLMConfig, w: dict[str, np.ndarray], ids: np.ndarray, mistake: str = "", value: float = 1.0
) -> torch.Tensor:
    """An ALiBi port in PyTorch, float32, with requires_grad left on."""
    w = {name: torch.tensor(array, dtype=torch.float32, requires_grad=True) for name, array in w.items()}
    n, h = ids.shape[-1], cfg.heads
    slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3])
    if mistake == "slopes":
        slopes = 2.0 ** (-8 / h * torch.arange(1, h + 1))
    if mistake == "steeper":
        slopes = slopes * value
    near = torch.arange(n) - torch.arange(n)[:, None]
    bias = (slopes[:, None, None] * near).masked_fill(near > 0, -torch.inf)
    if mistake == "sign":
        bias = (-slopes[:, None, None] * near).masked_fill(near > 0, -torch.inf)

    def norm(x, g):
        return torch.nn.functional.normalize(x, dim=-1) * cfg.dim**0.5 * g

    x = w["embedding"][torch.as_tensor(ids)]
    for layer in range(cfg.depth):
        b = f"blocks.{layer}."
        y = norm(x, w[b + "norm"])
        q = (y @ w[b + "attention.query"]).unflatten(-1, (h, -1)).transpose(-2, -3)
        kv = (y @ w[b + "attention.key_value"]).unsqueeze(-3)
        attended = torch.softmax(q @ kv.mT / cfg.dim_head**0.5 + bias, -1) @ kv
        gate, up = y @ w[b + "feedforward.gate"], y @ w[b + "feedforward.up"]
        if mistake == "gate":
            gate, up = up, gate
        merged = attended.transpose(-2, -3).flatten(-2)
        ff = torch.nn.functional.silu(gate) * up
        x = x + merged @ w[b + "attention.out"] + ff @ w[b + "feedforward.down"]
    return norm(x, w["norm"]) @ w["embedding"].T * (value if mistake == "logits" else cfg.dim**-0.5)


def in_jax(
    cfg: palm.PaLMConfig, w: dict[str, np.ndarray], ids: np.ndarray, mistake: str = "", value: float = 5e5
) -> jax.Array:
    """A rotary port in JAX, float32, with complex numbers and one fused matrix."""
    w = {name: jnp.asarray(array, jnp.float32) for name, array in w.items()}
    n, h, e = ids.shape[-1], cfg.heads, cfg.dim_head
    theta = value if mistake == "theta" else 10_000.0
    turns = jnp.exp(1j * jnp.arange(n)[:, None] * theta ** (-jnp.arange(0, e, 2) / e))

    def turn(x):
        z = jax.lax.complex(x[..., ::2], x[..., 1::2]) * turns
        return jnp.stack([z.real, z.imag], -1).reshape(x.shape)

    def norm(x, g):
        return jax.nn.standardize(x, epsilon=1e-5) * g

    x = w["embedding"][ids]
    for layer in range(cfg.depth):
        b = f"blocks.{layer}."
        y = norm(x, w[b + "norm"])
        fused = jnp.concatenate([w[f"{b}attention.{name}"] for name in ("query", "key", "value")], 1)
        q, k, v = jnp.split(y @ fused, (h * e, h * e + e), -1)
        if mistake == "order":
            q, v, k = jnp.split(y @ fused, (h * e, h * e + e), -1)
        q = jnp.moveaxis(turn(jnp.moveaxis(q.reshape(*q.shape[:-1], h, e), -2, -3)), -3, -2)
        attended = jax.nn.dot_product_attention(q, turn(k)[..., None, :], v[..., None, :], is_causal=True)
        up, gate = y @ w[b + "feedforward.up"], y @ w[b + "feedforward.gate"]
        out = w[b + "attention.out"]
        if mistake == "transposed":
            out = out.T
        x = (
            x
            + attended.reshape(*y.shape[:-1], -1) @ out
            + (jax.nn.silu(gate) * up) @ w[b + "feedforward.down"]
        )
    return norm(x, w["norm"]) @ w["embedding"].T


PORTS: dict[Any, palm.PaLMConfig] = {in_numpy: ROTARY, in_torch: ALIBI, in_jax: ROTARY}
