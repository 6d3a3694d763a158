"""Programs as people write them: what they return, hold and draw is compared, and left as it was."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import palm

RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 8)).astype(np.float32)
W = RNG.standard_normal((8, 8)).astype(np.float32)
IDS = np.array([[1, 2, 2], [3, 0, 5]])
WT, WJ = torch.from_numpy(W), jnp.asarray(W)
ROTATION = torch.polar(torch.ones(6, 4), torch.outer(torch.arange(6.0), 0.3 ** torch.arange(4.0)))
DRAWN = np.asarray(jax.random.normal(jax.random.key(0), (8,)))
LOWEST = float(np.finfo(np.float32).min)
BOTH_JAX, BOTH_TORCH = ("jax", "jax"), ("torch", "torch")


@partial(jax.tree_util.register_dataclass, data_fields=["x"], meta_fields=[])
@dataclasses.dataclass
class Box:
    x: Any


def turned_in_torch(x):
    z = torch.view_as_complex(x.reshape(6, 4, 2).contiguous())
    return torch.view_as_real(z * ROTATION).reshape(6, 8)


def turned_in_jax(x):
    a, b = x.reshape(6, 4, 2)[..., 0], x.reshape(6, 4, 2)[..., 1]
    angles = jnp.arange(6.0)[:, None] * 0.3 ** jnp.arange(4.0)
    c, s = jnp.cos(angles), jnp.sin(angles)
    return jnp.stack([a * c - b * s, a * s + b * c], -1).reshape(6, 8)


def pinned_gelu(x):
    def step(carry, row):
        return carry + jax.nn.gelu(row).astype(jnp.float32), None

    return jax.lax.scan(step, jnp.zeros(8, jnp.float32), x)[0]


def halved_while_large(x):
    return jax.lax.while_loop(lambda y: jnp.abs(y) > 0.5, lambda y: y / 2, x)


def by_numpy(x):
    out = np.array(x, np.float64)
    while (large := np.abs(out) > 0.5).any():
        out = np.where(large, out / 2, out)
    return out


def embedding_gradient(ids):
    w = jnp.asarray(W)
    return jax.grad(lambda w: (w[ids] ** 2).sum())(w)


def embedding_gradient_in_torch(ids):
    w = WT.clone().requires_grad_()
    (w[ids] ** 2).sum().backward()
    return w.grad


# A right pair, the frameworks, and what both are called with.
RIGHT = {
    "a float32 number": (lambda x: x * math.pi, lambda x: x * jnp.float32(np.pi), ("torch", "jax"), X),
    "GELU in a float32 carry": (
        lambda x: torch.nn.functional.gelu(x, approximate="tanh").sum(0),
        pinned_gelu,
        ("torch", "jax"),
        X,
    ),
    "complex64": (turned_in_torch, turned_in_jax, ("torch", "jax"), X),
    "vmap of while": (jax.vmap(jax.vmap(halved_while_large)), by_numpy, ("jax", "numpy"), X),
    "a gradient of an embedding": (embedding_gradient_in_torch, embedding_gradient, ("torch", "jax"), IDS),
    "float8": (
        lambda x: x.to(torch.float8_e4m3fn).float(),
        lambda x: x.astype(jnp.float8_e4m3fn).astype(jnp.float32),
        ("torch", "jax"),
        X,
    ),
    "numbers drawn from a key": (
        lambda x: x * jax.random.normal(jax.random.key(0), (8,)),
        lambda x: x * DRAWN,
        ("jax", "numpy"),
        X,
    ),
    "the lowest number as a fill": (
        lambda x: torch.where(x > 0, x @ WT, torch.finfo(x.dtype).min),
        lambda x: jnp.where(x > 0, x @ WJ, jnp.finfo(x.dtype).min),
        ("torch", "jax"),
        X,
    ),
    "a scan of nothing": (
        lambda x: jax.lax.scan(lambda c, r: (c + r, c), x[0], x[:0])[1].sum() + x,
        lambda x: x,
        BOTH_JAX,
        X,
    ),
    "a solution": (
        lambda x: torch.linalg.solve(WT.to(x.dtype), x.T),
        lambda x: jnp.linalg.solve(WJ.astype(x.dtype), x.T),
        ("torch", "jax"),
        X,
    ),
}
# The same with a mistake, each of which was once not seen.
WRONG = {
    "another infinity": (
        lambda x: torch.where(x > 0, x, torch.inf),
        lambda x: jnp.where(x > 0, x, jnp.nan),
        ("torch", "jax"),
        X,
    ),
    "behind a low fill": (
        lambda x: torch.where(x > 0, x @ WT, LOWEST),
        lambda x: jnp.where(x > 0, x @ WJ * 1.5, LOWEST),
        ("torch", "jax"),
        X,
    ),
    "beside the lowest number": (
        lambda x: torch.where(x > 0, x @ WT, torch.finfo(x.dtype).min),
        lambda x: jnp.where(x > 0, x @ WJ * 1.5, jnp.finfo(x.dtype).min),
        ("torch", "jax"),
        X,
    ),
    "a Python number": (
        lambda x: (x, x.sum().item()),
        lambda x: (x, (x.sum() * 1.5).item()),
        BOTH_TORCH,
        X,
    ),
    "a registered pytree": (lambda x: Box(jnp.sin(x)), lambda x: Box(jnp.cos(x)), BOTH_JAX, X),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_pair_agrees(name):
    a, b, frameworks, x = RIGHT[name]
    found = palm.compare(a, b, x, frameworks=frameworks)
    assert found.outcome == "agree", found.verdict


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_seen(name):
    a, b, frameworks, x = WRONG[name]
    found = palm.compare(a, b, x, frameworks=frameworks)
    assert found.outcome == "differ", found.verdict
    assert found.divergences


def test_a_factor_before_the_mask_is_shown_on_its_line():
    def scores(x, factor):
        s = x @ x.T * factor
        return torch.softmax(torch.where(torch.tril(torch.ones(6, 6)) > 0, s, -1e9), -1) @ x

    found = palm.compare(lambda x: scores(x, 0.3), lambda x: scores(x, 0.35), X, frameworks=BOTH_TORCH)
    first = found.divergences[0]
    assert first.cause == "other constant: 0.3 for 0.35"
    assert first.a.source == "s = x @ x.T * factor"


def test_functions_that_hold_numpy_arrays_work_as_before():
    table = np.linspace(0, 1, 8)

    def masked(x):
        return jnp.where(x > 0, table, x)

    found = palm.compare(masked, lambda x: masked(x) * 1, X, frameworks=BOTH_JAX)
    assert found.outcome == "agree", found.verdict
    for function in (masked, jax.jit(masked)):
        np.testing.assert_allclose(function(X), np.where(X > 0, table, X), rtol=1e-6)


def test_what_a_callable_object_keeps_is_put_back():
    class Counting:
        def __init__(self):
            self.calls = 0

        def __call__(self, x):
            self.calls += 1
            self.last = x
            return x @ WJ

    counting = Counting()
    assert palm.compare(counting, lambda x: x @ W, X, frameworks=("jax", "numpy")).agree
    assert vars(counting) == {"calls": 0}


@pytest.mark.parametrize("seed", range(3))
def test_numpys_random_numbers_in_a_jax_function_are_noticed_and_put_back(seed):
    np.random.seed(seed)
    before = np.random.get_state()[1].copy()

    def drawing(x):
        return x * np.random.standard_normal(8)

    found = palm.compare(drawing, lambda x: x, X, frameworks=BOTH_JAX)
    assert found.outcome == "cannot tell"
    assert "not deterministic" in found.verdict
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_a_program_of_ids_is_recorded(tmp_path):
    file = palm.trace(lambda ids: WJ[ids], IDS, framework="jax").save(tmp_path / "side.trace")
    assert palm.compare(file, lambda ids: WT[ids], IDS, frameworks=(None, "torch")).agree


def test_inputs_and_outputs_that_cannot_be_compared_are_refused():
    with pytest.raises(palm.ProbeError, match="must return arrays or numbers; got NoneType"):
        palm.compare(lambda x: None, lambda x: None, X, frameworks=BOTH_TORCH)
    with pytest.raises(palm.ProbeError, match=r"names must be unique; got a\.b twice"):
        palm.compare(lambda x: {"a": {"b": x}, "a.b": x}, lambda x: x, X, frameworks=BOTH_TORCH)
    with pytest.raises(palm.ProbeError, match="got random keys"):
        palm.compare(lambda k: k, lambda k: k, jax.random.key(0), frameworks=BOTH_JAX)
    with pytest.raises(palm.ConfigError, match="frameworks must be two of torch, jax, numpy"):
        palm.compare(lambda x: x, lambda x: x, X, frameworks="torch")
    held = defaultdict(int, x=X)
    assert palm.compare(lambda d: d["x"], lambda d: d["x"] * 1, held, frameworks=BOTH_TORCH).agree
