"""Bootstrap intervals: how often they are wrong about nothing, and that they find what is there."""

import numpy as np
import pytest

from palm.training import noise
from palm.training.noise import paired_gap, student, unpaired_gap

TRIALS = 600


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(noise, "RESAMPLES", 1000)


@pytest.mark.parametrize(
    ("degrees", "known"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (200, 1.972)]
)
def test_students_quantiles_are_those_of_tables(degrees, known):
    assert student(degrees) == pytest.approx(known, rel=1e-3)


def alarms(draw, gap):
    random = np.random.default_rng(0)
    return sum(not gap(draw, random, trial).is_noise for trial in range(TRIALS)) / TRIALS


def paired(m, shift=0.0):
    return lambda spread, random, trial: paired_gap(spread * random.normal(size=m) + shift, seed=trial)


def skewed(m):
    return lambda spread, random, trial: paired_gap(spread * random.exponential(size=m) - spread, seed=trial)


def unpaired(m, n, shift=0.0):
    return lambda spread, random, trial: unpaired_gap(
        random.normal(size=m) + shift, spread * random.normal(size=n), seed=trial
    )


@pytest.mark.parametrize(
    ("gap", "spread"),
    [(paired(3), 1), (paired(5), 1), (paired(40), 1), (unpaired(5, 5), 1), (unpaired(4, 8), 3)],
    ids=["3 pairs", "5 pairs", "40 pairs", "5 and 5", "4 and 8, of unequal spread"],
)
def test_equal_distributions_are_noise_at_about_the_nominal_rate(gap, spread, few_resamples):
    # 5 % of 600 is 30 with a standard deviation of 5.3.
    assert 0.02 <= alarms(spread, gap) <= 0.09


def test_skewed_values_raise_few_more_alarms(few_resamples):
    assert alarms(1, skewed(10)) <= 0.11  # reflected percentiles: 0.137


def test_without_the_widening_three_pairs_would_raise_too_many_alarms(few_resamples, monkeypatch):
    monkeypatch.setattr(noise, "student", lambda degrees: noise.NORMAL)
    assert alarms(1, paired(3)) > 0.12


@pytest.mark.parametrize("gap", [paired(5, shift=4), unpaired(6, 6, shift=4)], ids=["paired", "unpaired"])
def test_a_shift_is_found(gap, few_resamples):
    assert alarms(1, gap) > 0.9


def test_what_pairs_share_does_not_hide_a_shift():
    shared = np.random.default_rng(1).normal(size=6)
    own = 0.01 * np.random.default_rng(2).normal(size=(2, 6))
    a, b = shared + own[0] + 0.1, shared + own[1]
    assert not paired_gap(a - b).is_noise
    assert unpaired_gap(a, b).is_noise


def test_windows_of_more_tokens_weigh_more():
    found = paired_gap(np.array([10.0, 1.0, 1.0]), np.array([100, 1, 1]))
    assert found.difference == pytest.approx(12 / 102)


def test_a_seed_gives_the_same_interval_and_another_one_another():
    values = np.random.default_rng(0).normal(size=7)
    assert paired_gap(values) == paired_gap(values)
    assert paired_gap(values) != paired_gap(values, seed=1)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([0.0, 0.0], "A and B have equal losses."),
        (
            [0.5, 0.5],
            "The loss of A is 0.5 nats above that of B, more than noise (95 % interval 0.5 to 0.5).",
        ),
        ([-1.0, 1.0, 0.0], "which is noise"),
    ],
)
def test_the_sentence_says_what_was_found(values, told):
    assert told in paired_gap(np.array(values)).told("A", "B")


def test_values_that_do_not_vary_differ_by_what_they_differ():
    assert not unpaired_gap(np.ones(3), np.zeros(3)).is_noise
    assert unpaired_gap(np.ones(3), np.ones(3)).is_noise
