"""The yardstick: the rounding ratio and the rounding bound."""

import dataclasses
import math

import numpy as np
import pytest
from cases import DTYPES, small
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from palm.spec.rounding import RATIO_BAR, UNIT_ROUNDOFF, rms, rounding_bound, rounding_ratio

errors = st.integers(1, 20).flatmap(
    lambda n: st.tuples(*[arrays(np.float64, n, elements=st.just(0.0) | st.floats(1e-60, 1e60))] * 2)
)


def ratio_of(error_a: np.ndarray, error_b: np.ndarray) -> float:
    """Two sides around the truth 0, so that no subtraction here rounds."""
    return rounding_ratio(rms(error_a - error_b), rms(error_a), rms(error_b))


@given(errors, st.sampled_from([1.0, -1.0]))
@settings(max_examples=50)
def test_errors_around_one_truth_never_exceed_the_square_root_of_two(pair, sign):
    assert ratio_of(pair[0], sign * pair[1]) <= math.sqrt(2) * (1 + 1e-12) < RATIO_BAR


def test_opposite_errors_reach_the_square_root_of_two():
    assert ratio_of(np.array([3e-8, -2e-8]), np.array([-3e-8, 2e-8])) == pytest.approx(math.sqrt(2))


def test_independent_errors_give_about_one():
    a, b = np.random.default_rng(0).standard_normal((2, 100_000))
    assert ratio_of(a, b) == pytest.approx(1, abs=0.02)


def test_two_truths_far_apart_exceed_the_bar():
    own = np.array([1e-8, -1e-8])
    assert rounding_ratio(rms(own - (own + 1e-6)), rms(own), rms(own)) > RATIO_BAR


@pytest.mark.parametrize(
    ("cross", "own", "expected"),
    [
        (0.0, (0.0, 0.0), 0.0),
        (0.0, (1e-8, 1e-8), 0.0),
        (1e-9, (0.0, 0.0), math.inf),
        (2.0, (2.0, 0.0), 1.0),
        (5.0, (3.0, 4.0), 1.0),
    ],
)
def test_the_ratio_by_hand(cross, own, expected):
    assert rounding_ratio(cross, *own) == expected


@pytest.mark.parametrize(
    ("values", "expected"), [([], 0.0), ([3.0, 4.0], math.sqrt(12.5)), ([[-2.0], [2.0]], 2.0), (7.0, 7.0)]
)
def test_rms_by_hand(values, expected):
    assert rms(np.array(values)) == expected


def test_rms_of_narrow_values_is_formed_in_float64():
    assert rms(np.full(3, 1e30, np.float32)) == pytest.approx(1e30, rel=1e-7)
    assert rms(np.ones(4096, np.float32) * np.float32(1 + 2**-20)) == 1 + 2**-20


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_unit_roundoff_is_half_the_distance_from_one_to_the_next_number(dtype):
    digits = {"float64": 53, "float32": 24, "bfloat16": 8}[dtype]
    assert UNIT_ROUNDOFF[dtype] == 2.0**-digits


@pytest.mark.parametrize(
    ("dtype", "unit", "accumulator"),
    [("float64", 2**-53, 2**-53), ("float32", 2**-24, 2**-24), ("bfloat16", 2**-8, 2**-24)],
)
def test_the_bound_by_hand(dtype, unit, accumulator):
    # dim 6, three heads of 4, ff 18, five tokens.
    terms = 6 + 12 + 4 + 18 + 5
    expected = 2 * math.sqrt((2 + 1) * (8 * unit**2 + terms * accumulator**2))
    assert rounding_bound(small(), dtype, tokens=5, blocks=2) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    "larger",
    [
        {"blocks": 3},
        {"tokens": 6},
        {"dtype": "bfloat16"},
        *({"config": {field: 9}} for field in ("dim", "heads", "dim_head", "ff_mult")),
    ],
    ids=str,
)
def test_the_bound_grows_with_depth_width_length_and_unit_roundoff(larger):
    given = {"config": small(), "dtype": "float32", "tokens": 5, "blocks": 2}
    changed = larger | {"config": dataclasses.replace(small(), **larger.get("config", {}))}
    assert rounding_bound(**given | changed) > rounding_bound(**given)
