"""What an error proves, by where the bound that it is beyond comes from."""

import pytest

from palm.parity.judge.bounds import Bounds, is_certain, is_excused


@pytest.mark.parametrize(("times", "certain"), [(1.0, False), (1.4, False), (1.6, True)])
def test_beyond_what_amplification_allows_only_three_times_the_need_is_certain(times, certain):
    assert is_certain(times * 0.02, allowed=0.02, usual=0.01) == certain


def test_beyond_what_is_usual_every_excess_is_certain():
    assert is_certain(1.01 * 0.02, allowed=0.02, usual=0.02)


def test_where_no_digit_is_left_no_size_is_certain():
    assert not is_certain(90.0, allowed=0.7, usual=0.01)
    assert is_certain(90.0, allowed=0.4, usual=0.01)


@pytest.mark.parametrize(("factor", "excused"), [(1.0, False), (8.0, True)])
def test_a_bound_that_cancellation_raised_excuses_what_is_little_beyond_it(factor, excused):
    base = Bounds((1e-4, 1e-4), 1e-14, 1e-2).times(factor)
    errors = [1.2 * bound for bound in base.sides]
    assert base.usual == (1e-4, 1e-4)
    assert is_excused(errors, base.sides, base.sides, base.usual) == excused
