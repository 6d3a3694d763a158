"""Two programs that compute the same in float64: where one loses precision in its own, and which one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import palm

RNG = np.random.default_rng(0)
WIDTH, LENGTH = 32, 48
WEIGHT = (RNG.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
X = RNG.normal(size=(2, LENGTH, WIDTH)).astype(np.float32)
ROUNDING = "differ by rounding more than expected"
# A scale that no low precision holds.
SCALE = WIDTH**-0.5


def of_torch(
    dtype: torch.dtype, *, positions: torch.dtype = torch.float32, safe: bool = True, hot: float = 1
):
    """Attention with rotated queries, in `dtype`; `safe`: the softmax takes off the largest score first."""
    w = torch.tensor(WEIGHT).to(dtype)

    def attention(x: torch.Tensor) -> torch.Tensor:
        x = x.to(dtype) @ w
        angles = (torch.arange(LENGTH).to(positions) * 7)[:, None] * torch.linspace(0, 1, WIDTH).to(positions)
        turned = x * torch.cos(angles).to(dtype)
        scores = hot * SCALE * (turned @ x.mT)
        if safe:
            scores = scores - scores.amax(-1, keepdim=True)
        powers = torch.exp(scores)
        return powers / powers.sum(-1, keepdim=True) @ x

    return attention


def of_jax(dtype, *, hot: float = 1):
    """The same with JAX."""
    w = jnp.asarray(WEIGHT).astype(dtype)

    @jax.jit
    def attention(x):
        x = x.astype(dtype) @ w
        angles = (jnp.arange(LENGTH) * 7.0)[:, None] * jnp.linspace(0, 1, WIDTH)
        turned = x * jnp.cos(angles).astype(dtype)
        scores = turned @ jnp.swapaxes(x, -1, -2) * (hot * SCALE)
        return jax.nn.softmax(scores, -1) @ x

    return attention


@pytest.mark.parametrize("name", ["bfloat16", pytest.param("float32", marks=pytest.mark.whole)])
def test_right_programs_are_as_precise_as_their_dtype_lets_them(name):
    found = palm.compare(of_torch(getattr(torch, name)), of_jax(getattr(jnp, name)), X)
    assert found.outcome == "agree", found.verdict
    assert [one.dtype for one in found.precision] == [name] * 2
    assert all(0.1 < one.ratio < 2 for one in found.precision), found.precision
    assert any("exp" in row.a and row.error_a > 0 and row.error_b > 0 for row in found.rows)


def test_positions_in_a_low_precision_are_found_on_their_side():
    wrong = of_torch(torch.bfloat16, positions=torch.bfloat16)
    right = of_torch(torch.bfloat16)
    for sides, side in (((wrong, right), "a"), ((right, wrong), "b")):
        found = palm.compare(*sides, X)
        assert found.outcome == ROUNDING, found.verdict
        assert not found.agree
        (loss,) = found.losses
        assert getattr(loss, side).source.startswith(("angles = ", "turned = "))
        assert "loses precision: its " in found.verdict
    # What both do alike, neither does worse.
    assert palm.compare(wrong, wrong, X).outcome == "agree"


def test_what_overflows_is_found_where_it_does():
    hot = 40.0
    wrong = of_torch(torch.float16, safe=False, hot=hot)
    right = of_torch(torch.float16, hot=hot)
    found = palm.compare(wrong, right, X)
    assert found.outcome == ROUNDING, found.verdict
    assert found.losses[0].a.source == "powers = torch.exp(scores)"
    assert "is not finite in float16" in found.verdict
    assert palm.compare(right, right, X).agree


def test_a_variance_as_the_difference_of_two_large_numbers_is_found():
    def variance(x):
        return ((x - x.mean(-1, keepdims=True)) ** 2).mean(-1)

    def cancelling(x):
        return (x * x).mean(-1) - x.mean(-1) ** 2

    large = X + 300
    found = palm.compare(cancelling, variance, large)
    assert found.outcome == ROUNDING, found.verdict
    assert found.losses[0].a.source == "return (x * x).mean(-1) - x.mean(-1) ** 2"
    assert found.losses[0].a.op == "subtract"
    assert palm.compare(cancelling, variance, X).agree


def test_sums_in_a_low_precision_are_found():
    low = ml_dtypes.bfloat16
    many = np.abs(RNG.normal(size=(64, 4096))).astype(low)
    whole, alone = (lambda x: x.sum(-1)), (lambda x: x.astype(np.float32).sum(-1).astype(low))
    found = palm.compare(whole, alone, many, frameworks=("numpy", "numpy"))
    assert found.outcome == ROUNDING, found.verdict
    assert found.losses[0].a.op == "sum"
    few = many[:, :8]
    assert palm.compare(whole, alone, few, frameworks=("numpy", "numpy")).agree


def test_a_trace_knows_its_own_precision(tmp_path):
    wrong = palm.trace(of_torch(torch.bfloat16, positions=torch.bfloat16), X).save(tmp_path / "wrong.trace")
    found = palm.compare(wrong, of_torch(torch.bfloat16), X)
    assert found.outcome == ROUNDING
    assert found.to_dict()["losses"][0]["a"]["source"].startswith("angles = ")
    right = palm.trace(of_torch(torch.bfloat16), X).save(tmp_path / "right.trace")
    assert palm.compare(right, of_torch(torch.bfloat16), X).outcome == "agree"


def test_a_program_of_numbers_that_are_not_rounded_has_nothing_to_lose():
    def double(x):
        return 2 * x

    found = palm.compare(double, double, X.astype(np.float64))
    assert found.agree
    assert found.precision == ()


def test_an_error_is_shown_where_it_arises_and_not_at_a_value_that_is_nothing_but_rounding():
    """The other side folds β into a number of its own, so that it has no value there to compare."""

    def in_torch(g, count):
        nothing = (g - g).sum() * 1e-4
        return g / (0.001 * g * g / (1 - 0.999**1)).sqrt() + nothing

    def in_jax(g, count):
        nothing = (g - g.mean()).sum() * 1e-4
        correction = 1 - jnp.asarray(0.999) ** count
        return g / jnp.sqrt(0.001 * g * g / correction) + nothing

    rng = np.random.default_rng(0)
    g = (rng.choice([-1, 1], 200) * rng.uniform(0.9, 1.1, 200)).astype(np.float32)
    found = palm.compare(in_torch, in_jax, g, np.asarray(1), frameworks=("torch", "jax"))
    assert found.outcome == ROUNDING, found.verdict
    [loss] = found.losses
    assert loss.b.source == "correction = 1 - jnp.asarray(0.999) ** count"
