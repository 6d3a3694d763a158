"""The comparison itself, on sides made of the referee: exactly as far apart as each test puts them."""

import dataclasses
import json
import math

import numpy as np
import pytest
from cases import SIZES, assert_explains, assert_same_bits, draw_weights
from recordings import CONFIG, TOKENS, Arrays, scaled, side

from palm import BackendError, BundleError, ConfigError, compare
from palm.parity.recording.bundle import read_bundle, write_bundle
from palm.spec.taps import tap_names


def test_two_sides_of_one_function_agree():
    comparison = compare(side("a"), side("b"))
    assert comparison.agree
    assert comparison.first_divergence is None
    assert comparison.verdict.startswith("a and b agree: every difference is rounding (largest ratio ")
    names = [finding.name for finding in comparison.findings]
    assert names == [*tap_names(CONFIG.depth), "loss", *(f"grad:{n}" for n in reversed(draw_weights(CONFIG)))]
    assert all(ratio <= math.sqrt(2) * 1.001 for ratio in comparison.ratios.values())
    assert all(comparison.ratios[name] > 0 for name in tap_names(CONFIG.depth))
    assert all(finding.error_a <= finding.bound_a for finding in comparison.findings)
    assert comparison.top1_agreement == 1
    assert 0 <= comparison.kl_divergence < 1e-9


@pytest.mark.parametrize(
    "name", [*tap_names(CONFIG.depth), *(f"grad:{n}" for n in reversed(draw_weights(CONFIG)))]
)
@pytest.mark.parametrize("which", [0, 1])
def test_another_function_is_found_at_the_value_where_it_begins(name, which):
    changes = [scaled(name, 1 + 1e-5 * (which == i)) for i in range(2)]
    comparison = compare(side("a", change=changes[0]), side("b", change=changes[1]))
    assert not comparison.agree
    assert comparison.first_divergence == name
    assert [finding.name for finding in comparison.findings if finding.fault] == [name]
    assert comparison.ratios[name] > 1.5
    assert f"{'ab'[which]} is the one that is further from the referee" in comparison.verdict


def test_another_loss_is_found():
    comparison = compare(side("a"), side("b", loss=1e-3))
    assert comparison.first_divergence == "loss"


@pytest.mark.parametrize("which", [0, 1])
def test_a_side_that_rounds_too_coarsely_is_outside_its_bound_though_the_ratio_forgives_it(which):
    sides = [side(label, noise=1e-4 if which == i else 3e-8) for i, label in enumerate("ab")]
    comparison = compare(*sides)
    assert not comparison.agree
    assert all(ratio < 1.5 for ratio in comparison.ratios.values())
    assert comparison.first_divergence == "embed"
    fault = comparison.findings[0].fault
    assert f"{'ab'[which]} differs from the referee by" in fault
    assert "but rounding explains at most" in fault


# An infinite value minus itself is no number, and NumPy says so.
infinities = pytest.mark.filterwarnings("ignore:invalid value encountered in subtract")


@infinities
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_a_fault_and_named_so(value):
    def spoil(taps: Arrays, grads: Arrays) -> None:
        taps["blocks.1.attention"][0, 3, 2] = value

    comparison = compare(side("a"), side("b", change=spoil))
    assert comparison.first_divergence == "blocks.1.attention"
    assert "b is not finite" in comparison.verdict


def test_logits_that_are_not_numbers_have_no_divergence_of_zero():
    comparison = compare(side("a"), side("b", change=lambda taps, grads: taps["logits"].fill(math.nan)))
    assert math.isnan(comparison.kl_divergence)


def test_predictions_by_hand():
    def prefer_one(taps: Arrays, grads: Arrays) -> None:
        taps["logits"] = np.zeros_like(taps["logits"])
        taps["logits"][..., 1] = math.log(13)

    def prefer_one_or_two(taps: Arrays, grads: Arrays) -> None:
        prefer_one(taps, grads)
        taps["logits"][0, :, 2] = math.log(25)

    sides = [side("a", change=prefer_one, noise=0), side("b", change=prefer_one_or_two, noise=0)]
    comparison = compare(*sides)
    assert comparison.top1_agreement == 0.5
    # Of 25 shares a gives 13 to token 1 and one to each other; of 49, b gives 13 and 25 to tokens 1 and 2.
    kl = (math.log(49 / 25) * 24 + math.log(49 / 25 / 25)) / 25
    assert comparison.kl_divergence == pytest.approx(kl / 2, rel=1e-6)


def test_other_weights_are_no_agreement_even_where_nothing_shows():
    other = side("b")
    other.weights["norm"][0] += 1e-3
    comparison = compare(side("a"), other)
    assert not comparison.agree
    assert not comparison.weights_identical
    assert "the weights differ in " in comparison.verdict


def test_the_same_weights_in_another_dtype_are_the_same():
    other = side("b")
    wide = {name: array.astype(np.float64) for name, array in other.weights.items()}
    assert compare(side("a"), dataclasses.replace(other, weights=wide)).weights_identical


def test_configs_that_differ_are_told_and_are_no_agreement():
    other = dataclasses.replace(side("b"), config=dataclasses.replace(CONFIG, norm_eps=1e-7))
    comparison = compare(side("a"), other)
    assert comparison.differences == ("norm_eps is 1e-08 in a and 1e-07 in b",)
    assert not comparison.agree
    assert comparison.verdict.startswith("a and b differ: norm_eps is")


@pytest.mark.parametrize("field", SIZES)
def test_sides_of_different_shape_cannot_be_compared(field):
    other = dataclasses.replace(side("b"), config=dataclasses.replace(CONFIG, **{field: 99}))
    with pytest.raises(ConfigError) as raised:
        compare(side("a"), other)
    assert_explains(raised, f"{field} must be the same on both sides", f"{field}={SIZES[field]} and 99")


def test_sides_of_different_tokens_cannot_be_compared():
    other = dataclasses.replace(side("b"), tokens=TOKENS[:, ::-1])
    with pytest.raises(ConfigError, match="tokens must be the same on both sides"):
        compare(side("a"), other)


def test_what_is_no_side_is_refused():
    with pytest.raises(BackendError, match="model must be one that palm built; got builtins"):
        compare(1, 2, TOKENS)
    with pytest.raises(BundleError, match=r"got run/step.*palm\.load"):
        compare("run/step", "b", TOKENS)


def test_two_sides_of_one_label_get_a_letter_each():
    comparison = compare(side("torch"), side("torch"))
    assert (comparison.label_a, comparison.label_b) == ("torch a", "torch b")


@infinities
def test_a_comparison_as_plain_values_is_json_even_where_it_is_not_finite():
    spoiled = side("b", change=lambda taps, grads: taps["logits"].fill(math.inf), loss=math.inf)
    for other in (side("b"), spoiled):
        comparison = compare(side("a"), other)
        again = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
        assert (again["schema"], again["agree"]) == ("palm-compare", comparison.agree)
        assert again["first_divergence"] == comparison.first_divergence
        assert [finding["name"] for finding in again["findings"]] == list(comparison.ratios)
        assert again["sides"][0]["config"] == CONFIG.to_dict()


def test_a_recording_goes_through_a_folder_unchanged(tmp_path):
    recording = side("a")
    recording.taps["blocks.0.q"] = np.asfortranarray(recording.taps["blocks.0.q"])
    write_bundle(recording, tmp_path / "a")
    again = read_bundle(tmp_path / "a")
    for group in ("weights", "taps", "grads", "exact_taps", "exact_grads"):
        before, after = getattr(recording, group), getattr(again, group)
        assert list(before) == list(after)
        assert_same_bits(before, after)
    plain = ("label", "config", "dtype", "loss", "exact_loss", "environment", "weights_digest")
    assert all(getattr(again, name) == getattr(recording, name) for name in plain)
    assert np.array_equal(again.tokens, recording.tokens)
    assert compare(recording, again).weights_identical


def test_the_digest_of_weights_knows_every_bit_and_name():
    one, other = side("a"), side("a")
    assert one.weights_digest == other.weights_digest
    other.weights["norm"][5] = np.nextafter(other.weights["norm"][5], np.float32(2))
    assert one.weights_digest != other.weights_digest
    renamed = {name.replace("query", "request"): array for name, array in one.weights.items()}
    assert dataclasses.replace(one, weights=renamed).weights_digest != one.weights_digest
