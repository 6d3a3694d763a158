"""How sure a comparison is: the four outcomes, and what repeating adds."""

import dataclasses
import math

import numpy as np
import pytest
from recordings import CONFIG, TOKENS, scaled, side

from palm import compare
from palm.parity.recording.excerpt import excerpt_of
from palm.parity.repeats import Repeats
from palm.spec.rounding import rounding_bound

WEIGHTS = side("a").weights


def lossy(name="blocks.0.q", times=8.0, **changes):
    """A side of the right function that loses more of one tap than float32 explains."""
    found = side("b", **changes)
    rng = np.random.default_rng(0)
    bound = rounding_bound(CONFIG, "float32", TOKENS.shape[-1], 1)
    noise = 1 + times * bound * rng.standard_normal(found.taps[name].shape)
    return dataclasses.replace(found, taps={**found.taps, name: (found.taps[name] * noise).astype("float32")})


def test_rounding_more_than_expected_is_no_other_function():
    found = compare(side("a"), lossy())
    assert found.outcome == "differ by rounding more than expected"
    assert not found.agree
    assert found.first_divergence == "blocks.0.q"
    assert "differ by more rounding than expected, first at blocks.0.q" in found.verdict
    assert "In float64 both compute the same function" in found.verdict
    assert [f.nature for f in found.findings if f.fault] == ["rounding"]


def test_another_function_is_more_than_rounding_even_if_its_float64_program_is_as_wrong():
    """Both sides wrong alike: the ratio sees nothing, the referee does."""
    change = scaled("blocks.0.q", 1 + 3e-5)
    found = compare(side("a", change=change), side("b", change=change))
    assert found.outcome == "differ"
    assert all(ratio <= 1.5 for ratio in found.ratios.values())
    assert [f.nature for f in found.findings if f.fault] == ["function"]


def test_an_error_that_no_dtype_explains_is_another_function():
    assert compare(side("a"), lossy(times=1e7)).outcome == "differ"


def test_what_is_not_finite_on_both_sides_tells_nothing():
    def overflow(taps, grads):
        taps["logits"] = taps["logits"].copy()
        taps["logits"][0, 0, 0] = math.inf

    with np.errstate(invalid="ignore"):
        both = compare(side("a", change=overflow), side("b", change=overflow))
        one = compare(side("a"), side("b", change=overflow))
    assert both.outcome == "cannot tell"

    def elsewhere(taps, grads):
        taps["logits"] = taps["logits"].copy()
        taps["logits"][-1, -1, -1] = math.nan

    with np.errstate(invalid="ignore"):
        assert compare(side("a", change=overflow), side("b", change=elsewhere)).outcome == "differ"
    assert both.verdict == "cannot tell whether a and b agree: logits: a and b are not finite."
    assert one.outcome == "differ"


@pytest.mark.parametrize("which", [0, 1])
def test_float64_programs_that_differ_are_two_functions_whatever_is_left_in_working_precision(which):
    sides = [side("a"), side("b")]
    exact = sides[which].exact_taps
    other = {**exact, "norm": exact["norm"] * (1 + 1e-9)}
    sides[which] = dataclasses.replace(sides[which], exact_taps=other)
    told = compare(*sides)
    assert (told.outcome, told.first_divergence) == ("differ", "norm")
    assert f"in float64, {'ab'[which]} differs from the referee by 1.0e-09" in told.verdict
    assert "the float64 programs of the two sides differ by 1.0e-09" in told.verdict
    assert all(ratio < 1.5 for ratio in told.ratios.values())


def test_two_sides_wrong_alike_in_float64_only_are_told_by_the_referee():
    sides = [dataclasses.replace(s, exact_loss=s.exact_loss * (1 + 1e-9)) for s in (side("a"), side("b"))]
    told = compare(*sides)
    assert (told.outcome, told.first_divergence) == ("differ", "loss")
    assert "the two differ" not in told.verdict


def test_weights_rounded_on_one_side_only_tell_nothing():
    narrow = {name: array.astype("bfloat16") for name, array in WEIGHTS.items()}
    assert np.dtype("bfloat16") == narrow["norm"].dtype
    other = dataclasses.replace(side("b"), dtype="bfloat16", weights=narrow)
    found = compare(side("a"), other)
    assert found.outcome == "cannot tell"
    assert "as if one side had the other's weights rounded to bfloat16" in found.verdict
    moved = {**narrow, "norm": (WEIGHTS["norm"] * 1.1).astype("bfloat16")}
    told = compare(side("a"), dataclasses.replace(other, weights=moved))
    assert told.outcome == "differ"
    assert "the weights differ in embedding and" in told.verdict


def test_a_single_number_a_little_outside_its_bound_tells_nothing():
    first = compare(side("a"), side("b"))
    loss = next(finding for finding in first.findings if finding.kind == "loss")
    assert loss.elements == 1
    exact = first.losses[2]
    near = dataclasses.replace(side("b"), loss=exact * (1 + 2 * loss.bound_b))
    far = dataclasses.replace(side("b"), loss=exact * (1 + 20 * loss.bound_b))
    assert compare(side("a"), near).outcome == "cannot tell"
    assert compare(side("a"), far).outcome == "differ by rounding more than expected"


@pytest.mark.parametrize("name", ["blocks.0.q", "blocks.1.out", "logits", "grad:blocks.1.norm", "grad:norm"])
def test_excerpts_tell_a_function_from_rounding(name):
    right, wrong = (
        excerpt_of(side("b", change=change)) for change in (scaled(name, 1.0), scaled(name, 1.01))
    )
    assert compare(excerpt_of(side("a")), right).agree
    found = compare(excerpt_of(side("a")), wrong)
    assert found.outcome == "differ"
    assert found.first_divergence == name
    assert not found.referee


def test_excerpts_see_a_fault_in_a_sequence_of_which_only_statistics_are_kept():
    def change(taps, grads):
        taps["blocks.1.k"] = taps["blocks.1.k"].copy()
        taps["blocks.1.k"][-1] *= 1.2

    assert TOKENS.shape[0] > 1
    found = compare(excerpt_of(side("a")), excerpt_of(side("b", change=change)))
    assert found.first_divergence == "blocks.1.k"
    assert "the two differ by " in found.verdict


def test_excerpts_see_that_columns_are_exchanged():
    def change(taps, grads):
        taps["blocks.0.feedforward"] = taps["blocks.0.feedforward"][..., ::-1].copy()

    found = compare(excerpt_of(side("a")), excerpt_of(side("b", change=change)))
    assert (found.outcome, found.first_divergence) == ("differ", "blocks.0.feedforward")


@pytest.mark.parametrize("kept", ["sketches", "taps", "statistics"])
def test_each_part_of_an_excerpt_alone_shows_a_fault(kept):
    """The others are those of a right side."""
    right, wrong = (excerpt_of(side("b", change=scaled("blocks.1.k", by))) for by in (1.0, 1.3))
    mixed = {kept: {**getattr(right, kept), "blocks.1.k": getattr(wrong, kept)["blocks.1.k"]}}
    found = compare(excerpt_of(side("a")), dataclasses.replace(right, **mixed))
    assert found.first_divergence == "blocks.1.k"
    assert not found.agree


def without_float64_gradients(excerpt):
    taps = {name: s for name, s in excerpt.exact_sketches.items() if not name.startswith("grad:")}
    return dataclasses.replace(excerpt, exact_sketches=taps)


@pytest.mark.parametrize(
    ("by", "expected"), [(1.0, "agree"), (0.0, "differ"), (-1.0, "differ"), (1.5, "differ")]
)
def test_gradients_without_float64_are_held_to_the_bound(by, expected):
    a, b = (excerpt_of(side(name, change=scaled("grad:norm", f))) for name, f in (("a", 1.0), ("b", by)))
    assert compare(without_float64_gradients(a), without_float64_gradients(b)).outcome == expected


def test_a_gradient_a_little_beyond_the_bound_proves_nothing_without_float64():
    a, b = (excerpt_of(side(name, change=scaled("grad:norm", f))) for name, f in (("a", 1.0), ("b", 1.0002)))
    assert compare(a, b).outcome == "differ"
    found = compare(without_float64_gradients(a), without_float64_gradients(b))
    assert (found.outcome, found.first_divergence) == ("cannot tell", "grad:norm")


def test_an_excerpt_says_why_if_its_weights_can_be_had():
    def swap(taps, grads):
        taps["blocks.0.q"] = 2 * taps["blocks.0.q"]

    found = compare(excerpt_of(side("a")), excerpt_of(side("b", change=swap)))
    assert [one.taps for one in found.diagnoses] == [("blocks.0.q",), ("blocks.0.attention",)]
    without = dataclasses.replace(excerpt_of(side("b", change=swap)), weights=None)
    assert compare(excerpt_of(side("a")), without).diagnoses == ()


def repeated(*outcomes):
    """Repeats of which the i-th is right ("r"), lossy ("l") or wrong ("w")."""
    others = {"r": side("b"), "l": lossy(), "w": side("b", change=scaled("norm", 1.1))}
    repeats = Repeats()
    for seed, outcome in enumerate(outcomes):
        repeats.add(seed, compare(side("a"), others[outcome]))
    return repeats.result()


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ("r", "agree"),
        ("rrrrr", "agree"),
        ("rrwrr", "differ"),
        ("lll", "differ by rounding more than expected"),
        ("rlr", "cannot tell"),
        ("rlw", "differ"),
    ],
)
def test_repeats_add_up_to_one_outcome(outcomes, expected):
    found = repeated(*outcomes)
    assert found.outcome == expected
    assert found.to_dict()["outcome"] == expected
    assert found.agree == (expected == "agree")
    assert found.seeds == tuple(range(len(outcomes)))


def test_an_interval_holds_the_median_as_often_as_it_says():
    """Of N draws all lie on one side of the median with probability 2 · 2^-N: here, of 4000 times."""
    rng = np.random.default_rng(0)
    draws = rng.lognormal(size=(4000, 5))
    held = ((draws.min(1) <= 1) & (draws.max(1) >= 1)).mean()
    found = repeated(*"rrrrr")
    assert found.confidence == 1 - 2**-4
    assert abs(held - found.confidence) < 0.015
    low, middle, high = found.intervals["logits"]
    assert 0 < low <= middle <= high
    assert "Of 5 repeats: 5 agree. The largest ratio is " in found.verdict
    assert "with probability 93.8%" in found.verdict


def test_a_difference_where_nothing_is_rounded_is_said_without_a_ratio():
    found = compare(side("a", noise=0.0), side("b", noise=0.0, change=scaled("embed", 2.0)))
    assert found.first_divergence == "embed"
    assert found.ratios["embed"] > 1e15
    assert "the two differ by 1.0e+00, and neither has any rounding error here" in found.verdict
    assert "times their rounding" not in found.verdict
    rounded = compare(side("a", noise=0.0), side("b", change=scaled("embed", 2.0)))
    assert "times their rounding" in rounded.verdict


@pytest.mark.parametrize("change", ["weights", "config"])
def test_a_side_of_other_weights_is_not_said_to_be_the_wrong_one(change):
    """The referee has the weights and the config of a: that b is further from it says nothing of b."""
    plain, other = side("a", noise=0.0), side("b", noise=0.0, change=scaled("embed", 2.0))
    parts = {"weights": {**WEIGHTS, "embedding": 2 * WEIGHTS["embedding"]}}
    if change == "config":
        parts = {"config": dataclasses.replace(other.config, norm_eps=1e-3)}
    same = compare(plain, other).verdict
    assert "neither has any rounding error here, and b is the one that is further from the referee" in same
    other = dataclasses.replace(other, **parts)
    told = compare(plain, other).verdict
    assert (
        "the referee uses the weights and config of a, so the error of b is its distance from these" in told
    )
    assert "first difference is at embed: the two differ by 1.0e+00; b differs from the referee by" in told
    without = compare(excerpt_of(plain), excerpt_of(other)).verdict
    assert "first difference is at embed: the two differ by 5.0e-01." in without
    assert "the referee uses" not in without
    for verdict in (told, without):
        assert "neither has" not in verdict
        assert "further" not in verdict
