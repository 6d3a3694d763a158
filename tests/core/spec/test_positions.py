"""The constants of both position schemes, in float64."""

import math

import numpy as np
import pytest
from cases import assert_explains

from palm import ConfigError
from palm.spec.positions import alibi_slopes, rotary_table


def assert_slopes(heads: int, exponents: list[float]) -> None:
    slopes = alibi_slopes(heads)
    assert slopes.dtype == np.float64
    np.testing.assert_allclose(slopes, [2.0**-e for e in exponents], rtol=2**-52, atol=0)


@pytest.mark.parametrize(
    ("heads", "exponents"), [(1, [8]), (2, [4, 8]), (4, [2, 4, 6, 8]), (8, [1, 2, 3, 4, 5, 6, 7, 8])]
)
def test_alibi_slopes_of_a_power_of_two_are_one_geometric_series(heads, exponents):
    assert_slopes(heads, exponents)


def test_alibi_slopes_of_three_heads_are_those_of_two_and_one_of_four():
    assert_slopes(3, [4, 8, 2])


def test_alibi_slopes_of_six_heads_are_those_of_four_and_two_of_eight():
    assert_slopes(6, [2, 4, 6, 8, 1, 3])


def test_alibi_slopes_of_twelve_heads_are_those_of_eight_and_four_of_sixteen():
    assert_slopes(12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5])


@pytest.mark.parametrize(
    ("length", "dim_head", "theta"), [(1, 2, 10_000.0), (5, 4, 4.0), (300, 10, 10_000.0)]
)
def test_rotary_angles_are_position_times_falling_frequency(length, dim_head, theta):
    cos, sin = rotary_table(length, dim_head, theta)
    assert cos.shape == sin.shape == (length, dim_head // 2)
    for i in range(length):
        for p in range(dim_head // 2):
            angle = i / theta ** (2 * p / dim_head)
            # One rounding of the frequency is i roundings of the angle.
            assert abs(cos[i, p] - math.cos(angle)) <= (i + 1) * 2**-52
            assert abs(sin[i, p] - math.sin(angle)) <= (i + 1) * 2**-52


def test_the_first_pair_turns_by_one_radian_a_position():
    cos, sin = rotary_table(4, 6, 123.0)
    np.testing.assert_allclose(np.arctan2(sin[:, 0], cos[:, 0]), [0, 1, 2, 3], rtol=2**-52)


def test_a_table_of_angles_is_read_only():
    for array in rotary_table(3, 4, 10_000.0):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 2.0


def test_an_odd_dim_head_has_no_angles():
    with pytest.raises(ConfigError) as raised:
        rotary_table(3, 5, 10_000.0)
    assert_explains(raised, "dim_head must be even", "dim_head=5")
