"""Models that are not palm's, of which only logits are seen: the mistake in each is named."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from cases import assert_explains, draw_tokens, draw_weights

import palm
from palm.compare import ForeignComparison

ROTARY = palm.PaLMConfig(num_tokens=37, dim=24, depth=2, heads=3, dim_head=8, init="reference").resolve("jax")
ALIBI = palm.PaLMConfig(num_tokens=37, dim=24, depth=2, heads=6, dim_head=8, norm_eps=1e-6).resolve("torch")


def in_numpy(
    cfg: palm.PaLMConfig, w: dict[str, np.ndarray], ids: np.ndarray, mistake: str = ""
) -> np.ndarray:
    """A rotary port in NumPy, in the precision of the weights, one pair at a time where that is plainest."""
    n, h, e = ids.shape[-1], cfg.heads, cfg.dim_head

    def norm(x, g):
        x = x if mistake == "mean" else x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + (1e-3 if mistake == "eps" else 1e-5)) * g

    def turn(x):
        out = x.copy()
        for i in range(n):
            for p in range(e // 2):
                angle = i * 10_000 ** (-2 * p / e)
                a, b = (p, p + e // 2) if mistake == "layout" else (2 * p, 2 * p + 1)
                out[..., i, a] = x[..., i, a] * np.cos(angle) - x[..., i, b] * np.sin(angle)
                out[..., i, b] = x[..., i, b] * np.cos(angle) + x[..., i, a] * np.sin(angle)
        return out

    x = w["embedding"][ids]
    for layer in range(cfg.depth):
        b = f"blocks.{layer}."
        y = norm(x, w[b + "norm"])
        k, v = turn(y @ w[b + "attention.key"]), y @ w[b + "attention.value"]
        heads = []
        for head in range(h):
            q = turn(y @ w[b + "attention.query"][:, head * e : (head + 1) * e])
            s = q @ k.swapaxes(-1, -2) * (1 if mistake == "scale" else e**-0.5)
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
    cfg: palm.PaLMConfig, w: dict[str, np.ndarray], ids: np.ndarray, mistake: str = ""
) -> torch.Tensor:
    """An ALiBi port in PyTorch, float32, with requires_grad left on."""
    w = {name: torch.tensor(array, dtype=torch.float32, requires_grad=True) for name, array in w.items()}
    n, h = ids.shape[-1], cfg.heads
    slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3])
    if mistake == "slopes":
        slopes = 2.0 ** (-8 / h * torch.arange(1, h + 1))
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
    return norm(x, w["norm"]) @ w["embedding"].T * (1 if mistake == "logits" else cfg.dim**-0.5)


def in_jax(cfg: palm.PaLMConfig, w: dict[str, np.ndarray], ids: np.ndarray, mistake: str = "") -> jax.Array:
    """A rotary port in JAX, float32, with complex numbers and one fused matrix."""
    w = {name: jnp.asarray(array, jnp.float32) for name, array in w.items()}
    n, h, e = ids.shape[-1], cfg.heads, cfg.dim_head
    theta = 500_000.0 if mistake == "theta" else 10_000.0
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
MISTAKES = {
    (in_numpy, "layout"): "rotary layout",
    (in_numpy, "mean"): "mean subtraction",
    (in_numpy, "eps"): "eps",
    (in_numpy, "mask"): "mask",
    (in_numpy, "scale"): "query scale",
    (in_torch, "slopes"): "ALiBi slopes",
    (in_torch, "sign"): "ALiBi sign",
    (in_torch, "gate"): "up/gate swapped",
    (in_torch, "logits"): "logit scale",
    (in_jax, "theta"): "rotary θ",
    (in_jax, "order"): "q/k/v order",
    (in_jax, "transposed"): "transposed matrix",
}


def compared(port: Any, mistake: str = "", *, length: int = 48) -> ForeignComparison:
    cfg = PORTS[port]
    weights = draw_weights(cfg, 5, "float32")
    model = palm.from_numpy(cfg, weights, backend="torch")

    def my_port(ids: np.ndarray) -> Any:
        return port(cfg, weights, ids, mistake)

    return palm.compare(my_port, model, draw_tokens(cfg, 2, length))


@pytest.mark.parametrize("port", PORTS)
def test_a_right_port_agrees(port):
    found = compared(port)
    assert found.agree
    assert found.first_divergence is None
    assert found.likenesses == ()
    assert found.verdict.startswith("my_port and palm agree")


@pytest.mark.parametrize(("case", "cause"), MISTAKES.items(), ids=lambda x: x if isinstance(x, str) else x[1])
def test_the_mistake_of_a_port_is_named_from_its_logits_alone(case, cause):
    found = compared(*case)
    assert not found.agree
    assert found.first_divergence == "logits"
    assert found.likenesses[0].cause == cause, found.verdict
    assert found.likenesses[0].after <= found.bound < found.before
    assert f"behaves like this model with another {cause}" in found.verdict


def test_two_mistakes_are_named_together():
    cfg, weights = ROTARY, draw_weights(ROTARY, 5, "float32")
    model = palm.from_numpy(cfg, weights, backend="torch")
    found = palm.compare(
        lambda ids: cfg.dim**-0.5 * in_numpy(cfg, weights, ids, "layout"), model, draw_tokens(cfg, 48)
    )
    assert set(found.likenesses[0].cause.split(" and ")) == {"rotary layout", "logit scale"}


def test_a_mistake_that_nobody_knows_is_said_to_be_unknown():
    cfg, weights = ROTARY, draw_weights(ROTARY, 5, "float32")
    model = palm.from_numpy(cfg, weights, backend="jax")
    found = palm.compare(lambda ids: np.abs(in_numpy(cfg, weights, ids)), model, draw_tokens(cfg, 40))
    assert not found.agree
    assert found.likenesses == ()
    assert "none of the" in found.verdict
    assert found.tried > 500


def test_other_weights_are_no_known_mistake():
    cfg, weights = ROTARY, draw_weights(ROTARY, 5, "float32")
    model = palm.from_numpy(cfg, draw_weights(cfg, 6, "float32"), backend="torch")
    assert palm.compare(lambda ids: in_numpy(cfg, weights, ids), model, draw_tokens(cfg, 40)).likenesses == ()


def test_logits_of_each_type_are_held_to_their_own_rounding():
    cfg, weights = ROTARY, draw_weights(ROTARY, 5, "float32")
    model = palm.from_numpy(cfg, weights, backend="torch")
    tokens = draw_tokens(cfg, 40)
    exact = palm.compare(
        lambda ids: in_numpy(cfg, {k: v.astype(float) for k, v in weights.items()}, ids), model, tokens
    )
    rough = palm.compare(lambda ids: in_numpy(cfg, weights, ids).astype(ml_dtypes.bfloat16), model, tokens)
    assert (exact.agree, exact.dtype, rough.agree, rough.dtype) == (True, "float64", True, "bfloat16")
    assert exact.bound < 1e-12
    assert rough.bound > 1e-3


def test_a_port_that_computes_in_less_than_it_returns_is_told_so():
    cfg, weights = ROTARY, draw_weights(ROTARY, 5, "float32")
    model = palm.from_numpy(cfg, weights, backend="torch")
    rough = palm.convert(model, backend="torch", dtype="bfloat16")
    found = palm.compare(lambda ids: rough(torch.as_tensor(ids)).float(), rough, draw_tokens(cfg, 40))
    assert not found.agree
    assert found.rounding_of == "bfloat16"
    assert "bfloat16 rounds as much" in found.verdict
    listed = palm.compare(lambda ids: model(torch.as_tensor(ids)).tolist(), model, draw_tokens(cfg, 40))
    assert listed.agree


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_logits_that_are_not_finite_have_no_likeness(bad):
    cfg, weights = ROTARY, draw_weights(ROTARY, 5, "float32")
    model = palm.from_numpy(cfg, weights, backend="torch")

    def port(ids: np.ndarray) -> np.ndarray:
        logits = in_numpy(cfg, weights, ids)
        logits[..., -2:] = bad
        return logits

    found = palm.compare(port, model, draw_tokens(cfg, 40))
    assert (found.agree, found.likenesses, found.not_finite) == (False, (), 80)
    assert "80 of its logits are not finite" in found.verdict


def test_a_port_that_changes_its_ids_is_judged_by_those_it_was_given():
    cfg, weights = ROTARY, draw_weights(ROTARY, 5, "float32")
    model = palm.from_numpy(cfg, weights, backend="torch")

    def port(ids: np.ndarray) -> np.ndarray:
        ids[...] = ids[..., ::-1].copy()
        return in_numpy(cfg, weights, ids)

    found = palm.compare(port, model, draw_tokens(cfg, 30))
    assert [one.cause for one in found.likenesses] == ["tokens"]


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        (lambda ids: ids, ("must give logits of shape (40, 37)", "got int64[40]")),
        (lambda ids: np.zeros((40, 36)), ("must give logits of shape (40, 37)", "got float64[40, 36]")),
        (
            lambda ids: 1 / 0,
            ("must give logits for an int64 array of ids", "raised ZeroDivisionError", "Wrap it"),
        ),
    ],
)
def test_what_is_no_port_is_refused(function, parts):
    model = palm.build(ROTARY, backend="torch")
    with pytest.raises(palm.ProbeError) as raised:
        palm.compare(function, model, draw_tokens(ROTARY, 40))
    assert_explains(raised, *parts)
