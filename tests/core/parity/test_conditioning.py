"""What the function itself amplifies is allowed; what it does not amplify is not."""

import dataclasses

import numpy as np
import pytest
from cases import draw_tokens, draw_weights, small

from palm.parity.judge import conditioning
from palm.parity.judge.conditioning import Conditioning
from palm.spec import backward, forward
from palm.spec.forward import REFEREE, Place
from palm.spec.rounding import rms, rounding_bound


def norm_of(mean: float, dim: int = 64) -> Place:
    """The norm of rows of standard deviation 1 about `mean`."""
    cfg = dataclasses.replace(small(dim=dim, norm="layernorm"), depth=1)
    rows = mean + np.random.default_rng(0).standard_normal((50, dim))
    taps = {"embed": rows}
    return Place(cfg, {"blocks.0.norm": np.ones(dim)}, taps, np.zeros(50, int), "blocks.0.")


def allowed(at: Place, error: float) -> float:
    bound = rounding_bound(at.config, "float32", 50, 0)
    return conditioning.of_operation(REFEREE["norm"], at, "float32", error, bound) / bound


def test_what_is_within_the_bound_asks_for_nothing(monkeypatch):
    monkeypatch.setattr(conditioning, "_Moved", None)
    assert allowed(norm_of(0), 0.0) == 1


def test_a_norm_whose_rows_do_not_cancel_is_allowed_no_more():
    assert allowed(norm_of(0), 1e-3) == 1


@pytest.mark.parametrize("mean", [100, 10_000])
def test_a_norm_of_a_large_mean_is_allowed_what_its_subtraction_amplifies(mean):
    assert 0.2 * mean <= allowed(norm_of(mean), 1.0) <= 5 * mean


def test_what_is_not_finite_is_allowed_no_more_than_what_is_far_too_large():
    assert allowed(norm_of(100), np.nan) == allowed(norm_of(100), 1.0)


def model_of(dim: int) -> tuple[Conditioning, dict[str, np.ndarray]]:
    cfg = small(dim=dim, norm="layernorm", depth=3)
    weights, ids = draw_weights(cfg, 1), draw_tokens(cfg, 2, 30)
    return Conditioning(cfg, weights, ids), forward.activations(cfg, weights, ids)


@pytest.mark.parametrize(("dim", "least", "most"), [(3, 3.0, 1e6), (256, 1.0, 1.0)])
def test_narrow_models_are_allowed_more_and_wide_ones_are_not(dim, least, most):
    given, taps = model_of(dim)
    cfg = small(dim=dim, norm="layernorm", depth=3)
    bound = rounding_bound(cfg, "bfloat16", 30, 3)
    exact = taps["logits"]
    found = given.bound("logits", "tap", exact, rms(exact), 50 * bound, bound, "bfloat16") / bound
    assert least <= found <= most


def test_gradients_whose_sums_cancel_are_allowed_more_and_others_are_not():
    """Embeddings with a mean multiply what the rounding of a row's probabilities leaves of their sum."""
    cfg = small(dim=48, num_tokens=96, heads=4, dim_head=16)
    ids = draw_tokens(cfg, 2, 32)
    for mean, least, most in ((0.0, 1.0, 1.0), (20.0, 5.0, np.inf)):
        weights = draw_weights(cfg, 1)
        weights["embedding"] = weights["embedding"] + mean
        exact = backward.value_and_grad(cfg, weights, ids)[1]["norm"]
        bound = rounding_bound(cfg, "float32", ids.size + cfg.num_tokens, 2 * cfg.depth)
        given = Conditioning(cfg, weights, ids)
        error = 200 * bound
        found = given.bound("grad:norm", "gradient", exact, rms(exact), error, bound, "float32") / bound
        assert least <= found <= most


def test_what_is_said_of_float64_is_in_proportion_to_float32():
    cfg = small(dim=48, num_tokens=96, heads=4, dim_head=16)
    ids = draw_tokens(cfg, 2, 32)
    weights = draw_weights(cfg, 1)
    weights["embedding"] = weights["embedding"] + 20
    exact = backward.value_and_grad(cfg, weights, ids)[1]["norm"]
    given = Conditioning(cfg, weights, ids)
    single, double = (
        given.bound("grad:norm", "gradient", exact, rms(exact), 1.0, 1e-3 * unit, of)
        for of, unit in (("float32", 1.0), ("float64", 2.0**-29))
    )
    assert 0.2 < double / single * 2**29 < 5
