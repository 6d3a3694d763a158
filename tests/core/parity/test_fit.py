"""One number is found to its last digits, or as far as what was given is exact."""

import math

import numpy as np
import pytest

from palm.parity.explain.fit import polish, search

LOW, HIGH = math.log(1e-6), math.log(1e6)
X = np.linspace(0.1, 2.0, 200)


def fitted(residual, points=16):
    return polish(residual, search(residual, LOW, HIGH, points), LOW, HIGH, (HIGH - LOW) / points)


@pytest.mark.parametrize("number", [3.3e-5, 0.7, 1.0, 12_345.0])
@pytest.mark.parametrize(
    "of",
    [
        lambda x: x * X,
        lambda x: 1 / np.sqrt(X + x),
        lambda x: np.cos(3 * x ** (-X / 8)),
        lambda x: X**2 / (x + X),
    ],
    ids=["factor", "eps", "frequencies", "sum"],
)
def test_a_number_is_found_to_float64(of, number):
    log = fitted(lambda log: of(math.exp(log)) - of(number), points=100)
    assert math.exp(log) == pytest.approx(number, rel=1e-9)


def test_what_is_given_with_noise_is_found_as_far_as_that():
    noise = 1e-4 * np.random.default_rng(0).standard_normal(X.size)
    log = fitted(lambda log: math.exp(log) * X - (0.7 * X + noise))
    assert abs(math.exp(log) / 0.7 - 1) < 1e-4


@pytest.mark.parametrize(("number", "end"), [(1e-9, LOW), (1e9, HIGH)])
def test_what_lies_outside_is_met_at_the_end_of_the_range(number, end):
    assert fitted(lambda log: np.log(math.exp(log) * X) - np.log(number * X)) == pytest.approx(end)


def test_what_the_number_does_not_move_ends_at_once():
    calls = []

    def residual(log):
        calls.append(log)
        return X

    assert LOW <= fitted(residual) <= HIGH
    assert len(calls) <= 16 + 12 + 3


def test_what_is_not_finite_in_a_part_of_the_range_is_passed_over():
    def residual(log):
        return np.full(3, np.nan) if log < 0 else np.full(3, log - 2.0)

    assert fitted(residual) == pytest.approx(2.0)


def test_a_step_that_makes_it_worse_is_not_kept():
    def residual(log):
        return np.array([np.arctan(20 * (log - 1.0))])  # Newton's steps from far away diverge

    start = 1.3
    found = polish(residual, start, LOW, HIGH, 100.0)
    assert abs(residual(found)[0]) <= abs(residual(start)[0])
