"""What a right program needs is measured by random rounding errors, which are of the size of real ones."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from cases import draw_tokens, draw_weights, small

from palm.parity.judge.need import FACTOR, a_priori, allowed, noise_need
from palm.parity.judge.noise import Precision, noisy
from palm.spec import backward, forward
from palm.spec.rounding import UNIT_ROUNDOFF, rms

CONFIGS = {
    "alibi": small(dim=48, heads=4, dim_head=16),
    "rotary": small(dim=48, heads=4, dim_head=16, positions="rotary", norm="layernorm", share_kv=False),
}
EXACT = Precision(0.0, 0.0, 0.0)
SINGLE = Precision(*[UNIT_ROUNDOFF["float32"]] * 3)


def need(config, weights, of, length=40):
    ids = draw_tokens(config, length)
    return noise_need(config, weights, ids, forward.run(config, weights, ids)["logits"], of)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_noise_of_size_zero_changes_no_bit_forward_or_back(config):
    weights, ids = draw_weights(config, 1), draw_tokens(config, 2, 20)
    quiet = noisy(weights, EXACT, 0)
    for right, moved in (
        (forward.activations(config, weights, ids), forward.activations(config, quiet, ids)),
        (backward.value_and_grad(config, weights, ids)[1], backward.value_and_grad(config, quiet, ids)[1]),
    ):
        assert all(np.array_equal(array, np.asarray(moved[name])) for name, array in right.items())


def test_every_operation_behind_the_lookup_has_noise_and_each_draw_another():
    config = CONFIGS["rotary"]
    weights, ids = draw_weights(config, 1), draw_tokens(config, 2, 20)
    right = forward.activations(config, weights, ids) | backward.value_and_grad(config, weights, ids)[1]
    draws = [
        forward.activations(config, noisy(weights, SINGLE, i), ids)
        | backward.value_and_grad(config, noisy(weights, SINGLE, i), ids)[1]
        for i in range(2)
    ]
    assert np.array_equal(np.asarray(draws[0].pop("embed")), right.pop("embed"))
    for name, array in right.items():
        errors = [rms(np.asarray(draw[name]) - array) / rms(array) for draw in draws]
        assert all(1e-8 < error < 1e-5 for error in errors), name
        assert errors[0] != errors[1]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_error_of_a_program_in_float32_is_as_large_as_that_of_random_noise(config, monkeypatch):
    weights, ids = draw_weights(config, 1), draw_tokens(config, 40)
    single = {name: array.astype(np.float32) for name, array in weights.items()}
    exact = forward.run(config, single, ids)["logits"]
    needed = noise_need(config, single, ids, exact, "float32")
    # The referee itself in float32, but for the scores and their softmax.
    monkeypatch.setattr(forward, "upcast", lambda x: np.asarray(x, np.float32))
    rounded = forward.run(config, single, ids)["logits"]
    assert rounded.dtype == np.float32
    assert 0.5 <= rms(rounded - exact) / rms(exact) / needed <= FACTOR


def test_need_is_proportional_to_the_unit_roundoff():
    config = CONFIGS["alibi"]
    weights = {name: array.astype("bfloat16") for name, array in draw_weights(config, 1).items()}
    weights = {name: array.astype(np.float64) for name, array in weights.items()}
    low, middle, single = (need(config, weights, of) for of in ("bfloat16", "float16", "float32"))
    assert 7 < low / middle < 9
    assert low / single > 2**14


def test_weights_that_are_rounded_first_need_more():
    config = CONFIGS["alibi"]
    wide = draw_weights(config, 1)
    narrow = {name: array.astype("bfloat16").astype(np.float64) for name, array in wide.items()}
    assert need(config, wide, "bfloat16") > 1.1 * need(config, narrow, "bfloat16")


def test_a_function_that_amplifies_needs_more_than_sizes_say():
    config = CONFIGS["rotary"]
    weights = draw_weights(config, 1)
    tame = need(config, weights, "float32")
    wild = need(config, {**weights, "embedding": weights["embedding"] + 2000}, "float32")
    limit = a_priori(config, "float32", 40)
    assert tame < limit / 4
    assert wild > 10 * limit


def test_the_a_priori_bound_is_the_upper_limit_unless_a_right_program_needs_more():
    config = CONFIGS["alibi"]
    for of in ("float64", "float32"):
        limit = a_priori(config, of, 40)
        assert allowed(config, of, 40, limit / 10) == limit
        assert allowed(config, of, 40, 3 * limit) == FACTOR * 3 * limit
    for of in ("float16", "bfloat16"):
        limit = a_priori(config, of, 40)
        assert allowed(config, of, 40, limit / 10) == FACTOR * limit / 10
        assert allowed(config, of, 40, 0.9 * limit) == limit
        assert allowed(config, of, 40, 3 * limit) == FACTOR * 3 * limit
    half, low = (a_priori(config, of, 40) for of in ("float16", "bfloat16"))
    assert math.isclose(low / half, 8)


def test_a_zero_stays_zero():
    config = dataclasses.replace(CONFIGS["alibi"], depth=1)
    weights = draw_weights(config, 1)
    weights["blocks.0.attention.out"] = np.zeros_like(weights["blocks.0.attention.out"])
    taps = forward.activations(config, noisy(weights, SINGLE, 0), draw_tokens(config, 20))
    assert not np.asarray(taps["blocks.0.attention_out"]).any()
