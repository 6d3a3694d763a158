"""A small GPT in PyTorch, which is not PaLM, and its ports to JAX and NumPy; `mistakes` go into a port."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY, WIDTH, HEADS, DEPTH, LONGEST = 40, 16, 2, 2, 32
IDS = np.random.default_rng(0).integers(0, VOCABULARY, (2, 9))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.heads(part) for part in self.qkv(self.norm_1(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.positions(torch.arange(ids.shape[-1]))
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.embedding.weight.T


def gpt() -> GPT:
    """With weights that are no initial ones: no norm's scale is one, no bias zero."""
    torch.manual_seed(0)
    model = GPT()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def port(library: str, held: dict[str, np.ndarray], mistakes: Collection[str] = ()) -> Callable[..., Any]:
    """The model in JAX or NumPy, closed over its weights in float32."""
    xp: Any = jnp if library == "jax" else np
    w = {name: xp.asarray(array) for name, array in held.items()}
    if "one weight" in mistakes:
        w["blocks.1.up.weight"] = w["blocks.1.up.weight"] * np.float32(1.01)

    def norm(x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        if "variance" in mistakes:
            square = (centred**2).sum(-1, keepdims=True) / (WIDTH - 1)
        else:
            square = (centred**2).mean(-1, keepdims=True)
        eps = 1e-6 if "eps" in mistakes else 1e-5
        return centred / xp.sqrt(square + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Any, name: str) -> Any:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def heads(x: Any) -> Any:
        if "head order" in mistakes:
            return x.reshape(*x.shape[:2], -1, HEADS).transpose(0, 3, 1, 2)
        return x.reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)

    def attention(x: Any, name: str) -> Any:
        q, k, v = (heads(part) for part in xp.split(linear(x, f"{name}.qkv"), 3, -1))
        scores = q @ k.swapaxes(-1, -2)
        scores = scores / (WIDTH if "scale" in mistakes else math.sqrt(WIDTH // HEADS))
        n = x.shape[1]
        hidden = xp.tril(xp.ones((n, n), bool), -1 if "mask" in mistakes else 0)
        scores = xp.where(hidden, scores, -1e9)
        likely = xp.exp(scores - scores.max(-1, keepdims=True))
        mixed = likely / likely.sum(-1, keepdims=True) @ v
        return linear(mixed.transpose(0, 2, 1, 3).reshape(*x.shape), f"{name}.out")

    def activation(x: Any) -> Any:
        if "activation" in mistakes:
            return x / (1 + xp.exp(-x))
        tanh = xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        return 0.5 * x * (1 + tanh) if "tanh" in mistakes else exact(x)

    def exact(x: Any) -> Any:
        if library == "jax":
            return jax.nn.gelu(x, approximate=False)
        return 0.5 * x * (1 + xp.vectorize(math.erf)(x / math.sqrt(2)))

    def model(ids: Any) -> Any:
        x = w["embedding.weight"][ids] + w["positions.weight"][: ids.shape[-1]]
        for i in range(DEPTH):
            name = f"blocks.{i}"
            mixed = x + attention(norm(x, f"{name}.norm_1"), name)
            read = x if "residual" in mistakes and i else mixed
            changed = activation(linear(norm(mixed, f"{name}.norm_2"), f"{name}.up"))
            x = read + linear(changed, f"{name}.down")
        x = x if "no final norm" in mistakes else norm(x, "norm")
        return x @ w["embedding.weight"].T

    return model
