"""Recordings of live models: what an excerpt leaves out, it still sees."""

import dataclasses

import numpy as np
import pytest
from cases import assert_same_bits, draw_tokens, small

import palm
from palm.parity.recording.bundle import read_bundle
from palm.parity.recording.excerpt import Excerpt, excerpt_of, record_excerpt
from palm.parity.recording.recording import Mode, Recording, record
from palm.parity.run.launch import Source, _common
from palm.parity.run.sides import Side
from palm.parity.run.worker import _model
from palm.spec.initial import initial_weights
from palm.spec.rounding import rms

CONFIG = small(num_tokens=97, dim=48, depth=3, heads=3, dim_head=16)
TOKENS = draw_tokens(CONFIG, 2, 90)


@pytest.fixture(scope="module")
def models():
    t = palm.build(CONFIG, backend="torch", seed=5)
    return {"torch": t, "jax": palm.convert(t, backend="jax")}


@pytest.fixture(scope="module")
def complete(models):
    return {backend: record(model, TOKENS) for backend, model in models.items()}


@pytest.fixture(scope="module")
def excerpts(models):
    return {backend: record_excerpt(model, TOKENS, seed=5) for backend, model in models.items()}


@pytest.mark.whole
def test_a_model_is_recorded_and_compared_by_its_path(models, tmp_path):
    for backend, model in models.items():
        assert palm.record(model, TOKENS, tmp_path / backend, seed=5) == tmp_path / backend
        palm.record(model, TOKENS, tmp_path / f"{backend} complete", complete=True)
    assert isinstance(read_bundle(tmp_path / "jax"), Excerpt)
    assert isinstance(read_bundle(tmp_path / "jax complete"), Recording)
    for a in ("torch", "torch complete"):
        for b in ("jax", "jax complete"):
            assert palm.compare(tmp_path / a, tmp_path / b).agree
    small_one, whole = (
        sum(file.stat().st_size for file in (tmp_path / name).iterdir()) for name in ("jax", "jax complete")
    )
    assert small_one < 0.5 * whole


@pytest.mark.whole
def test_sketches_tell_how_far_apart_the_sides_are_over_all_elements(complete, excerpts):
    """Of all positions, for these are few; the estimate's own error is some percent."""
    whole = palm.compare(*complete.values())
    cut = palm.compare(*excerpts.values())
    assert cut.agree
    assert not cut.referee
    for finding in cut.findings:
        if finding.kind != "tap" or finding.cross == 0:
            continue
        a, b = (side.taps[finding.name].astype(np.float64) for side in complete.values())
        exact = complete["torch"].exact_taps[finding.name]
        assert finding.cross == pytest.approx(rms(a - b) / rms(exact), rel=0.2), finding.name
        assert finding.ratio == pytest.approx(whole.ratios[finding.name], rel=0.25), finding.name


def test_no_ratio_of_two_right_excerpts_exceeds_the_root_of_two(excerpts):
    taps = [f.ratio for f in palm.compare(*excerpts.values()).findings if f.kind == "tap"]
    assert max(taps) <= np.sqrt(2) * 1.001
    assert min(ratio for ratio in taps if ratio) > 0.3


@pytest.mark.parametrize("tap", ["blocks.0.v", "blocks.2.feedforward", "logits"])
def test_a_fault_at_the_last_position_alone_is_seen(complete, tap):
    """It lies beyond the beginning that is kept whole."""
    groups = {group: dict(getattr(complete["jax"], group)) for group in ("taps", "exact_taps")}
    for taps in groups.values():
        taps[tap] = taps[tap].copy()
        taps[tap][0, -1] *= 1.001
    from_whole = excerpt_of(dataclasses.replace(complete["jax"], **groups))
    assert len(from_whole.taps["embed"]) < TOKENS.shape[1]
    found = palm.compare(complete["torch"], from_whole)
    assert (found.outcome, found.first_divergence) == ("differ", tap)


def test_the_beginning_is_what_a_shorter_text_gives(models, excerpts):
    for backend, model in models.items():
        kept = excerpts[backend].taps
        length = len(kept["embed"])
        assert 2 <= length < TOKENS.shape[1]
        again = palm.activations(model, TOKENS[0, :length])
        for name, tap in kept.items():
            assert rms(tap - again[name]) <= 1e-6 * rms(again[name]), name


def test_weights_of_an_excerpt_are_drawn_again_from_the_seed_or_not_at_all(excerpts, models):
    beginning = excerpts["jax"].beginning
    assert beginning is not None
    for name, array in palm.to_numpy(models["jax"]).items():
        assert np.array_equal(beginning.weights[name], array)
    assert dataclasses.replace(excerpts["jax"], seed=None).beginning is None
    other = dataclasses.replace(excerpts["jax"], seed=6).beginning
    with pytest.raises(palm.WeightsError, match="embedding must be the weight that seed 6 gives"):
        other.weights["embedding"]
    wrong = {n: t * 2 if n == "blocks.0.k" else t for n, t in excerpts["jax"].taps.items()}
    sketches = {n: s * 2 if n == "blocks.0.k" else s for n, s in excerpts["jax"].sketches.items()}
    faulty = dataclasses.replace(excerpts["jax"], taps=wrong, sketches=sketches)
    assert palm.compare(excerpts["torch"], faulty).diagnoses[0].taps[0] == "blocks.0.k"
    forged = [dataclasses.replace(excerpt, seed=6) for excerpt in (excerpts["torch"], faulty)]
    assert palm.compare(*forged).diagnoses == ()


def test_weights_that_version_0_1_0_drew_are_drawn_again_as_it_did(excerpts, tmp_path):
    weights = initial_weights(CONFIG, 5, "float32", draw="whole")
    old = record_excerpt(palm.from_numpy(CONFIG, weights, backend="torch"), TOKENS, seed=5)
    assert old.beginning is not None
    for name, array in weights.items():
        assert np.array_equal(old.beginning.weights[name], array)
    # A live side beside it has these weights too, and beside a new one those of today.
    for excerpt, expected in ((old, weights), (excerpts["torch"], initial_weights(CONFIG, 5, "float32"))):
        side = Side("torch")
        request = _common(Source(CONFIG, 0, ()), [side], excerpt, tmp_path) | side.to_dict()
        model, _ = _model(request, request["seed"])
        assert_same_bits(palm.to_numpy(model), expected)
    assert not np.array_equal(weights["embedding"], expected["embedding"])


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("backend", "mode"),
    [
        ("torch", Mode(remat=True)),
        ("torch", Mode(remat="feedforward")),
        ("jax", Mode(remat="feedforward")),
        ("torch", Mode(compile=False)),
        ("jax", Mode(compile=False, remat=True)),
        ("jax", Mode(compile=True)),
    ],
)
def test_how_a_side_runs_changes_rounding_only_and_is_written_down(models, complete, backend, mode):
    again = record(models[backend], TOKENS, mode=mode, label="again")
    assert palm.compare(complete[backend], again).agree
    told = {False: "off", True: "on", "feedforward": "feedforward"}[mode.remat]
    assert again.environment["remat"] == told
    told = {None: "as the backend does", True: "on", False: "off"}[mode.compile]
    assert again.environment["compile"] == told
