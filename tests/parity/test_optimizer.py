"""Each wing's optimisers against the referee's, update by update; and against the frameworks' own AdamW."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from palm import Recipe, jax_impl, torch_impl
from palm.recipes import Rates
from palm.spec import optimizer as reference_optimizer
from palm.spec.rounding import rms

STEPS = 20
SHAPES = {"matrix": (48, 64), "scale": (64,)}
KINDS = ("adamw", "adafactor")
BARS = {"float32": 1e-6, "float64": 1e-12}
EPS = 1e-8


def recipe(kind: str) -> Recipe:
    return Recipe(optimizer=kind, steps=STEPS, warmup=5, learning_rate=1e-2, weight_decay=0.1, beta2=0.999)


def gradients(shape: tuple[int, ...], steps: int = STEPS) -> np.ndarray:
    """Gradients of very different sizes, as a run has them."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((steps, *shape)) * 10.0 ** rng.uniform(-6, 0, (1, *shape))


def wing_step(wing: Any, kind: str, arrays: list[np.ndarray], rates: Rates) -> list[np.ndarray]:
    if wing is torch_impl:
        return [x.numpy() for x in wing.OPTIMIZERS[kind](*map(torch.from_numpy, arrays), rates, EPS)]
    scalars = Rates(*(jnp.asarray(rate, arrays[0].dtype) for rate in rates))
    step = jax.jit(lambda arrays, scalars: wing.OPTIMIZERS[kind](*arrays, scalars, EPS))
    return [np.array(x) for x in step([jnp.asarray(x) for x in arrays], scalars)]


def worst(wing: Any, kind: str, dtype: str, shape: tuple[int, ...], spoil: float = 1.0) -> float:
    """The largest error of 20 updates, relative to the update; each side has moments of its own."""
    rates = [recipe(kind).rates(k) for k in range(1, STEPS + 1)]
    p = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    exact = [p.astype(np.float64), np.zeros(shape), np.zeros(shape)]
    moments = [np.zeros(shape, dtype), np.zeros(shape, dtype)]
    errors = []
    for g, rate in zip(gradients(shape).astype(dtype), rates, strict=True):
        expected, *exact[1:] = reference_optimizer.OPTIMIZERS[kind](
            exact[0], g.astype(np.float64), exact[1], exact[2], rate, EPS
        )
        spoilt = rate._replace(beta2=rate.beta2 * spoil)
        update, *moments = wing_step(wing, kind, [exact[0].astype(dtype), g, *moments], spoilt)
        errors.append(rms(update - expected) / rms(expected))
        exact[0] = (exact[0] - expected).astype(dtype).astype(np.float64)
    return max(errors)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wing", [torch_impl, jax_impl], ids=["torch", "jax"])
def test_twenty_updates_are_the_referees(wing, kind, shape, dtype):
    with jax.enable_x64(dtype == "float64"):
        assert worst(wing, kind, dtype, SHAPES[shape]) <= BARS[dtype]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wing", [torch_impl, jax_impl], ids=["torch", "jax"])
def test_a_decay_rate_that_is_off_by_a_hundred_thousandth_is_noticed(wing, kind):
    assert worst(wing, kind, "float32", SHAPES["matrix"], spoil=1 - 1e-5) > BARS["float32"]


def test_each_layer_of_a_stack_has_a_scale_of_its_own():
    """Adafactor scales by the rms of a parameter, and a stack of layers is not one parameter."""
    rates = recipe("adafactor").rates(9)
    layers = np.stack([np.full((4, 4), 1.0), np.full((4, 4), 100.0)]).astype(np.float32)
    ones = np.ones_like(layers)
    stacked = jax.vmap(lambda p, g, m, s: jax_impl.adafactor(p, g, m, s, rates, EPS)[0])(
        layers, ones, ones, ones
    )
    for layer, update in zip(layers, stacked, strict=True):
        others = [np.ones((4, 4), np.float32) for _ in range(3)]  # the moments are changed in place
        (alone, *_) = wing_step(torch_impl, "adafactor", [layer, *others], rates)
        np.testing.assert_allclose(update, alone, rtol=1e-6)
    whole = jax_impl.adafactor(layers, ones, ones, ones, rates, EPS)[0]
    assert not np.allclose(whole, stacked, rtol=0.1)


def test_adamw_in_torch_does_not_ask_how_its_tensors_lie_in_memory():
    """The fused kernel goes through memory as it lies, and would mix up elements."""
    rng = np.random.default_rng(2)
    rates = recipe("adamw").rates(7)
    arrays = [np.abs(rng.standard_normal((48, 64))) for _ in range(4)]
    expected = wing_step(torch_impl, "adamw", [x.copy() for x in arrays], rates)
    for turned in range(4):
        turned_over = [x.T.copy().T if i == turned else x.copy() for i, x in enumerate(arrays)]
        for one, other in zip(wing_step(torch_impl, "adamw", turned_over, rates), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_adamw_is_torchs_own():
    settings = recipe("adamw")
    p = torch.nn.Parameter(torch.from_numpy(np.random.default_rng(1).standard_normal((48, 64))))
    mine, m, s = p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p)
    other = torch.optim.AdamW([p], eps=EPS, betas=(settings.beta1, settings.beta2), weight_decay=0.1)
    for k, g in enumerate(gradients((48, 64)), 1):
        rates = settings.rates(k)
        update, m, s = torch_impl.adamw(mine, torch.from_numpy(g), m, s, rates, EPS)
        mine = mine - update
        other.param_groups[0]["lr"] = rates.lr
        p.grad = torch.from_numpy(g)
        other.step()
    np.testing.assert_allclose(mine.numpy(), p.detach().numpy(), rtol=1e-13, atol=1e-15)


def test_adamw_is_optax_own_to_its_float32_bias_correction():
    settings = recipe("adamw")
    p = jnp.asarray(np.random.default_rng(1).standard_normal((48, 64)), jnp.float32)
    mine, m, s = p, jnp.zeros_like(p), jnp.zeros_like(p)
    rates = [settings.rates(k) for k in range(1, STEPS + 1)]
    schedule = jnp.asarray([rate.lr for rate in rates])
    other = optax.adamw(lambda k: schedule[k], settings.beta1, settings.beta2, EPS, weight_decay=0.1)
    state = other.init(p)
    step = jax.jit(lambda p, g, m, s, rates: jax_impl.adamw(p, g, m, s, rates, EPS))
    for g, rate in zip(gradients((48, 64)).astype(np.float32), rates, strict=True):
        update, m, s = step(mine, g, m, s, rate)
        mine = mine - update
        theirs, state = other.update(jnp.asarray(g), state, p)
        p = optax.apply_updates(p, theirs)
    np.testing.assert_allclose(mine, p, rtol=1e-4, atol=1e-5)
