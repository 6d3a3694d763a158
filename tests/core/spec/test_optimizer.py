"""The referee's optimisers against a reading of the formulas element by element."""

import math

import numpy as np
import pytest

from palm import Recipe
from palm.recipes import SCALE_FLOOR, SQUARE_FLOOR, Rates
from palm.spec.optimizer import OPTIMIZERS, adafactor, adamw, clipped

SHAPES = {"matrix": (3, 4), "vector": (5,)}
STEPS = 6
EPS = 1e-8
RECIPES = {
    name: Recipe(optimizer=name, steps=STEPS, warmup=2, learning_rate=0.03, weight_decay=0.7, beta2=0.97)
    for name in OPTIMIZERS
}


def adamw_by_loops(p, g, moments, k, some):
    """Algorithm 2 of arXiv:1711.05101 for one number after the other."""
    taken = {}
    for at, gradient in np.ndenumerate(g):
        m, s = moments.get(at, (0.0, 0.0))
        m = some.beta1 * m + (1 - some.beta1) * gradient
        s = some.beta2 * s + (1 - some.beta2) * gradient * gradient
        moments[at] = m, s
        m_hat, s_hat = m / (1 - some.beta1**k), s / (1 - some.beta2**k)
        decay = some.weight_decay * p[at] if p.ndim == 2 else 0.0
        taken[at] = some.lr(k) * (m_hat / (math.sqrt(s_hat) + EPS) + decay)
    return taken


def adafactor_by_loops(p, g, moments, k, some):
    """arXiv:1804.04235 unfactored, with the decay and the scaling of arXiv:2204.02311 §5."""
    beta2, lr = 1 - k**-0.8, some.lr(k)
    scale = max(1e-3, math.sqrt(sum(x * x for x in p.flat) / p.size))
    taken = {}
    for at, gradient in np.ndenumerate(g):
        m, s = moments.get(at, (0.0, 0.0))
        s = beta2 * s + (1 - beta2) * (gradient * gradient + 1e-30)
        m = some.beta1 * m + (1 - some.beta1) * gradient / math.sqrt(s)
        moments[at] = m, s
        decay = lr * lr * some.weight_decay * p[at] if p.ndim == 2 else 0.0
        taken[at] = lr * scale * m + decay
    return taken


BY_LOOPS = {"adamw": adamw_by_loops, "adafactor": adafactor_by_loops}


def farthest(kind: str, shape: tuple[int, ...], spoil=lambda rates: rates) -> float:
    """The largest relative difference of an update or a moment in some steps of both readings."""
    some, rng = RECIPES[kind], np.random.default_rng(3)
    p = rng.standard_normal(shape)
    q, m, s, moments, worst = p.copy(), np.zeros(shape), np.zeros(shape), {}, 0.0
    for k in range(1, STEPS + 1):
        g = rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 1, shape)
        update, m, s = OPTIMIZERS[kind](p, g, m, s, spoil(some.rates(k)), EPS)
        taken = BY_LOOPS[kind](q, g, moments, k, some)
        for at, other in taken.items():
            for mine, theirs in zip((update[at], m[at], s[at]), (other, *moments[at]), strict=True):
                worst = max(worst, abs(mine - theirs) / abs(theirs))
            q[at] -= other
        p = p - update
    return worst


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_several_steps_are_those_of_the_formulas_element_by_element(kind, shape):
    # Moments of opposite signs cancel: 1e-12 is some thousand roundings, and far below any fault.
    assert farthest(kind, SHAPES[shape]) < 1e-12


@pytest.mark.parametrize("field", ["lr", "decay", "beta1", "rest1", "beta2", "rest2"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_rate_that_is_off_by_a_millionth_is_noticed(kind, field):
    def spoil(rates: Rates) -> Rates:
        return rates._replace(**{field: getattr(rates, field) * (1 + 1e-6)})

    assert farthest(kind, SHAPES["matrix"], spoil) > 1e-10


@pytest.mark.parametrize("field", ["correction1", "correction2"])
def test_adamw_divides_by_its_corrections(field):
    def spoil(rates: Rates) -> Rates:
        return rates._replace(**{field: 1.0})

    assert farthest("adamw", SHAPES["matrix"], spoil) > 1e-3


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_only_matrices_decay(kind):
    rates = Rates(0.5, 0.25, 0.9, 0.1, 0.9, 0.1, 1.0, 1.0)
    for p, decays in ((np.full((2, 3), 8.0), True), (np.full(3, 8.0), False)):
        nothing = np.zeros_like(p)
        update, *_ = OPTIMIZERS[kind](p, nothing, nothing, nothing, rates, EPS)
        np.testing.assert_array_equal(update, 2.0 if decays else 0.0)


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-4, 0.99e-3, 1e-3, 2e-3, 5.0])
@pytest.mark.parametrize("shape", SHAPES.values())
def test_adafactor_scales_by_the_rms_but_not_below_its_floor(size, shape):
    """One first step with β₁ = 0: the direction is the gradient's sign, the length lr times the scale."""
    rates = Recipe(optimizer="adafactor", beta1=0.0, weight_decay=0.0, warmup=0, schedule="constant").rates(1)
    signs = np.where(np.arange(math.prod(shape)).reshape(shape) % 2, -1.0, 1.0)
    update, m, s = adafactor(size * signs, 3.0 * signs, np.zeros(shape), np.zeros(shape), rates, EPS)
    np.testing.assert_array_equal(s, 9.0)
    np.testing.assert_array_equal(m, signs)
    np.testing.assert_allclose(update, rates.lr * max(1e-3, size) * signs, rtol=1e-15, atol=0)


def test_the_floors_are_the_published_ones():
    assert (SCALE_FLOOR, SQUARE_FLOOR) == (1e-3, 1e-30)


def test_a_gradient_of_zero_moves_nothing_in_adafactor():
    rates = Recipe(optimizer="adafactor", weight_decay=0.0)
    p, nothing = np.ones((2, 2)), np.zeros((2, 2))
    m, s = nothing, nothing
    for k in range(1, 4):
        update, m, s = adafactor(p, nothing, m, s, rates.rates(k), EPS)
        np.testing.assert_array_equal(update, 0.0)
    np.testing.assert_allclose(s, SQUARE_FLOOR, rtol=1e-15)


def test_a_gradient_of_zero_moves_nothing_in_adamw():
    p, nothing = np.ones((2, 2)), np.zeros((2, 2))
    update, *_ = adamw(p, nothing, nothing, nothing, Recipe(weight_decay=0.0).rates(1), EPS)
    np.testing.assert_array_equal(update, 0.0)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_leaves_what_it_is_given_alone(kind):
    arrays = [np.random.default_rng(i).uniform(1, 2, (2, 3)) for i in range(4)]
    before = [array.copy() for array in arrays]
    OPTIMIZERS[kind](*arrays, RECIPES[kind].rates(3), EPS)
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, old)


GRADS = {"a": np.array([[3.0, -0.0], [1e-300, -1.0]]), "b": np.array([-4.0, 2.0**-1074])}
NORM = math.sqrt(26.0)


def bits(grads: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: grad.tobytes() for name, grad in grads.items()}


@pytest.mark.parametrize("clip", [0.0, 6.0, 1e9])
def test_a_gradient_within_the_norm_is_left_bitwise_alone(clip):
    found, norm = clipped(GRADS, clip)
    assert bits(found) == bits(GRADS)
    assert norm == NORM


@pytest.mark.parametrize("clip", [5.0, 1.0, 1e-3])
def test_a_larger_gradient_is_scaled_to_the_norm(clip):
    found, norm = clipped(GRADS, clip)
    assert norm == NORM
    assert abs(clipped(found, 0.0)[1] / clip - 1) < 1e-15
    for name, grad in GRADS.items():
        np.testing.assert_allclose(found[name], grad * (clip / NORM), rtol=1e-15, atol=1e-320)


def test_the_norm_is_that_of_all_gradients_together():
    assert clipped({"a": np.full((2, 2), 3.0), "b": np.full(7, 4.0)}, 0.0)[1] == math.sqrt(4 * 9 + 7 * 16)


def test_no_gradient_at_all_is_not_divided_by_its_norm():
    found, norm = clipped({"a": np.zeros(3)}, 1.0)
    assert norm == 0.0
    np.testing.assert_array_equal(found["a"], 0.0)
