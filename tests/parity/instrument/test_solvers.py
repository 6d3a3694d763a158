"""A short sample of tests/faults: numbers off any grid, other matrices and ids are solved and named."""

from __future__ import annotations

import pytest
from faults.trials import WINGS, trial

# kind -> what its free choice is told to be; `nox -s faults` draws many of every kind.
SOLVED = {
    "rotary θ, any": "rotary θ is ",
    "norm eps": "eps is ",
    "ALiBi stretched": "the ALiBi slopes are multiplied by ",
    "query scale, any": "the query scale is multiplied by ",
    "mask fill": "instead of −∞",
    "untied embedding": "the output matrix is one that the model does not have",
    "embedding scale": "the embedding is multiplied by ",
    "norm variance, unbiased": "d − 1",
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("seed", "name"), list(enumerate(SOLVED)), ids=str)
def test_what_is_free_in_a_fault_is_solved(seed, name):
    wing = WINGS[seed % 2]
    planted, found = trial(name, wing, seed)
    first = found.diagnoses[0]
    assert (first.side, first.taps[0], first.cause) == (wing, planted.tap, planted.kind.cause), first.sentence
    assert SOLVED[name] in first.detail
    assert first.after <= first.bound < first.before


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["a temperature a head", "tanh on values"])
def test_what_nobody_knows_stays_unknown(name):
    planted, found = trial(name, "torch", 0)
    assert (found.diagnoses[0].taps[0], found.diagnoses[0].cause) == (planted.tap, "unknown")


@pytest.mark.whole
@pytest.mark.parametrize("wing", WINGS)
def test_another_order_of_sums_is_no_fault(wing):
    assert trial("sums in another order", wing, 0)[1].agree
