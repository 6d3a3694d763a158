"""Modules of Flax, of both of its interfaces, against PyTorch: right ones, and one with a mistake."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

import palm

pytestmark = pytest.mark.filterwarnings("default")
WIDTH, HEADS, LENGTH = 16, 2, 7
X = np.random.default_rng(0).standard_normal((3, LENGTH, WIDTH)).astype(np.float32)


class Block(nn.Module):
    """Attention and a feed-forward net, each added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.down(nn.functional.gelu(self.up(self.norm(x)), approximate="tanh"))


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(0)
    return Block()


def attention(q, k, v):
    q, k, v = (x.reshape(*x.shape[:2], HEADS, -1) for x in (q, k, v))
    return linen.dot_product_attention(q, k, v).reshape(*X.shape)


class OfNnx(nnx.Module):
    def __init__(self, *, eps: float = 1e-6) -> None:
        rngs = nnx.Rngs(0)
        self.norm = nnx.LayerNorm(WIDTH, epsilon=eps, rngs=rngs)
        self.qkv, self.out = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 32, rngs=rngs), nnx.Linear(32, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.out(attention(*jnp.split(self.qkv(x), 3, -1)))
        return x + self.down(nnx.gelu(self.up(self.norm(x))))


class OfLinen(linen.Module):
    eps: float = 1e-6

    @linen.compact
    def __call__(self, x):
        x = x + linen.Dense(WIDTH, name="out")(
            attention(*jnp.split(linen.Dense(3 * WIDTH, name="qkv")(x), 3, -1))
        )
        hidden = linen.Dense(32, name="up")(linen.LayerNorm(epsilon=self.eps, name="norm")(x))
        return x + linen.Dense(WIDTH, name="down")(linen.gelu(hidden))


def of_nnx(block: Block, **settings: float) -> nnx.Module:
    port = OfNnx(**settings)
    port.norm.scale[...] = jnp.asarray(block.norm.weight.detach().numpy())
    port.norm.bias[...] = jnp.asarray(block.norm.bias.detach().numpy())
    for name in ("qkv", "out", "up", "down"):
        ours, theirs = getattr(block, name), getattr(port, name)
        theirs.kernel[...] = jnp.asarray(ours.weight.detach().numpy().T)
        theirs.bias[...] = jnp.asarray(ours.bias.detach().numpy())
    return port


def of_linen(block: Block, **settings: float) -> linen.Module:
    params = {
        name: {
            "kernel": jnp.asarray(getattr(block, name).weight.detach().numpy().T),
            "bias": jnp.asarray(getattr(block, name).bias.detach().numpy()),
        }
        for name in ("qkv", "out", "up", "down")
    }
    norm = {
        name: jnp.asarray(getattr(block.norm, own).detach().numpy())
        for name, own in (("scale", "weight"), ("bias", "bias"))
    }
    return OfLinen(**settings).bind({"params": {**params, "norm": norm}})


@pytest.mark.parametrize("ported", [of_nnx, of_linen])
def test_a_right_module_agrees(block, ported):
    port = ported(block)
    before = np.asarray(port(X))
    found = palm.compare(block, port, X)
    assert found.outcome == "agree", found.verdict
    assert min(found.aligned) == 1
    assert len(found.precision) == 2
    assert all(one.counterparts for one in found.parameters)
    assert any(
        one.name.endswith("qkv.kernel") or one.name.endswith("qkv.kernel.value") for one in found.parameters
    )
    np.testing.assert_array_equal(np.asarray(port(X)), before)


@pytest.mark.parametrize("ported", [of_nnx, of_linen])
def test_a_mistake_is_on_its_line(block, ported):
    found = palm.compare(block, ported(block, eps=1e-3), X)
    assert found.outcome == "differ"
    assert found.divergences[0].cause == "other constant: 1e-06 for 0.001"
    assert "norm" in found.divergences[0].b.source
