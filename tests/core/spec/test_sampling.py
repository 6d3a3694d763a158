"""Noise of (seed, row) alone, and the settings of a draw."""

import dataclasses
import hashlib
import math

import numpy as np
import pytest
from cases import assert_explains

from palm import ConfigError
from palm.spec.sampling import Noise, Sampling


def drawn(seed: int, rows: int, num_tokens: int = 7, steps: int = 3) -> np.ndarray:
    """The noise of some steps. Shape (steps, rows, num_tokens)."""
    noise = Noise(seed, rows, num_tokens)
    return np.stack([noise.next() for _ in range(steps)])


def test_noise_has_a_row_for_each_sequence():
    noise = Noise(0, 4, 7).next()
    assert (noise.shape, noise.dtype) == ((4, 7), np.float64)
    assert np.isfinite(noise).all()


@pytest.mark.parametrize("rows", [1, 2, 5, 11])
def test_a_row_is_the_same_whatever_else_is_in_the_batch(rows):
    most = drawn(3, 11)
    assert drawn(3, rows).tobytes() == np.ascontiguousarray(most[:, :rows]).tobytes()


@pytest.mark.parametrize(("first", "rows"), [(0, 2), (2, 5), (10, 1)])
def test_a_part_of_a_list_has_the_noise_of_its_rows(first, rows):
    part = Noise(3, rows, 7, first).next()
    assert part.tobytes() == np.ascontiguousarray(drawn(3, 11)[0, first : first + rows]).tobytes()


def test_seeds_rows_and_steps_all_differ():
    everything = np.stack([drawn(seed, 4) for seed in range(4)])
    assert len(np.unique(everything)) == everything.size


def test_the_same_seed_gives_the_same_noise_in_any_process():
    """Philox keyed by SHA-256 of the seed and the row: these bits never change."""
    key = int.from_bytes(hashlib.sha256(b"palm/5/generate/2").digest()[:16], "little")
    uniform = np.random.Generator(np.random.Philox(key=key))
    np.testing.assert_array_equal(drawn(5, 3)[:, 2], uniform.gumbel(size=(3, 7)))


def test_the_noise_is_standard_gumbel():
    """Mean γ, variance π²/6, and P(x ≤ t) = exp(−exp(−t)); each within five standard errors."""
    count, tokens = 200, 1000
    sample = drawn(0, count, tokens, 1).ravel()
    deviation = math.pi / math.sqrt(6)
    assert abs(sample.mean() - 0.5772156649015329) < 5 * deviation / math.sqrt(sample.size)
    # The fourth central moment is 27/5 of the squared variance.
    assert abs(sample.var() / deviation**2 - 1) < 5 * math.sqrt(4.4 / sample.size)
    for t in (-1.5, -0.5, 0.0, 1.0, 3.0):
        share = math.exp(-math.exp(-t))
        error = math.sqrt(share * (1 - share) / sample.size)
        assert abs((sample <= t).mean() - share) < 5 * error, t


def test_the_largest_of_logit_and_noise_is_a_draw_from_the_softmax():
    logits = np.array([1.0, 0.0, -1.0, 2.0, -np.inf])
    shares = np.exp(logits) / np.exp(logits).sum()
    rows = 4000
    noise = Noise(1, rows, 5)
    picks = np.concatenate([(logits + noise.next()).argmax(1) for _ in range(5)])
    found = np.bincount(picks, minlength=5) / picks.size
    assert (np.abs(found - shares) <= 5 * np.sqrt(shares * (1 - shares) / picks.size)).all()


@pytest.mark.parametrize("seed", [-1, 1.0, True, None, "1"])
def test_a_seed_must_be_an_int_of_at_least_zero(seed):
    with pytest.raises(ConfigError) as raised:
        Noise(seed, 1, 2)
    assert_explains(raised, "seed must be an int of at least 0", f"seed={seed!r}", "Use 0, 1, 2")


def test_a_temperature_that_overflows_is_refused():
    with pytest.raises(ConfigError) as raised:
        Sampling(temperature=1e-39)
    assert_explains(raised, "temperature must be 0 or at least 1e-06", "temperature=1e-39", "Use 0")
    assert Sampling(temperature=1e-6).temperature == 1e-6


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, True, "1", None])
def test_a_temperature_must_be_finite_and_not_negative(value):
    with pytest.raises(ConfigError) as raised:
        Sampling(temperature=value)
    assert_explains(raised, "temperature must be a number of at least 0", f"temperature={value!r}", "Use one")


@pytest.mark.parametrize("value", [0, -3, 1.0, 2.5, True, "5"])
def test_top_k_must_be_a_whole_number_of_at_least_one(value):
    with pytest.raises(ConfigError) as raised:
        Sampling(top_k=value)
    assert_explains(raised, "top_k must be a whole number of at least 1", f"top_k={value!r}", "Use an int")


@pytest.mark.parametrize("value", [0, 0.0, -0.5, math.nan, math.inf, True, "0.9"])
@pytest.mark.parametrize("field", ["top_p", "min_p"])
def test_a_share_must_be_above_zero(field, value):
    with pytest.raises(ConfigError) as raised:
        Sampling(**{field: value})
    assert_explains(raised, f"{field} must be a number above 0", f"{field}={value!r}", "Use one in between")


@pytest.mark.parametrize("value", [1.0000001, 2, 90])
@pytest.mark.parametrize("field", ["top_p", "min_p"])
def test_a_share_must_be_at_most_one(field, value):
    with pytest.raises(ConfigError) as raised:
        Sampling(**{field: value})
    assert_explains(raised, f"{field} must be at most 1", f"{field}={value!r}", "Use a share of 1")


def test_the_limits_themselves_are_allowed_and_become_plain_numbers():
    some = Sampling(temperature=0, top_k=np.int32(1), top_p=np.float64(0.5), min_p=np.float64(1))
    assert [type(x) for x in dataclasses.astuple(some)] == [float, int, float, float]
    assert some == Sampling(temperature=0.0, top_k=1, top_p=0.5, min_p=1.0)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sampling().temperature = 2.0


@pytest.mark.parametrize(
    ("fields", "filters"),
    [
        ({}, False),
        ({"temperature": 0}, False),
        ({"top_k": 5}, True),
        ({"top_p": 1}, False),
        ({"top_p": 0.9}, True),
        ({"min_p": 1}, True),
    ],
)
def test_settings_say_whether_a_token_can_be_left_out(fields, filters):
    assert Sampling(**fields).filters is filters
