"""Logits as serving computes them against one forward pass: faults are found where they begin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
import torch
from cases import assert_explains, draw_tokens, draw_weights, small
from support import namespace

import palm
from palm import ConfigError, ProbeError, jax_impl, torch_impl
from palm.parity.blackbox import search
from palm.parity.blackbox.compare import compare_logits
from palm.parity.blackbox.logits import Logits
from palm.parity.recording.recording import record
from palm.parity.run import serving

WINGS = {"torch": torch_impl, "jax": jax_impl}
WAYS: dict[str, dict[str, Any]] = {
    "decode on": {"decode": True},
    "rows alone": {"rows": "alone"},
    "padding left": {"padding": "left"},
    "decode on rows alone": {"decode": True, "rows": "alone"},
    "rows alone padding left": {"rows": "alone", "padding": "left"},
}
LENGTH = 24


def model_of(wing: str, dtype: str = "float32", **choices: Any) -> Any:
    config = small(**{"num_tokens": 40, **choices})
    return palm.from_numpy(config, draw_weights(config, dtype=dtype), backend=wing)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("wing", WINGS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("positions", ["alibi", "rotary", "xpos"])
@pytest.mark.parametrize("share_kv", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("qk_norm", [False, True], ids=["plain", "normed"])
def test_a_right_model_agrees_with_itself_in_every_way(wing, way, rows, dtype, positions, share_kv, qk_norm):
    model = model_of(wing, dtype, positions=positions, share_kv=share_kv, qk_norm=qk_norm)
    tokens = draw_tokens(model.config, rows, LENGTH)
    function = palm.served(model, **WAYS[way])
    found = palm.compare(function, model, tokens)
    assert found.agree, found.verdict
    assert (found.label, found.dtype, found.first_position) == (f"{wing} {way}", dtype, None)
    assert function(tokens).shape == (rows, LENGTH, 40)


def test_each_way_computes_otherwise(monkeypatch):
    """What each way calls, so that none of them is one forward pass in disguise."""
    model, calls = model_of("torch"), []
    tokens = draw_tokens(model.config, 3, LENGTH)
    monkeypatch.setattr(
        serving,
        "activations",
        lambda model, ids, **more: (
            calls.append((ids.shape, {k: v.sum() for k, v in more.items()}))
            or palm.activations(model, ids, **more)
        ),
    )
    feed = torch_impl.Decoder.feed
    monkeypatch.setattr(
        torch_impl.Decoder, "feed", lambda self, ids: calls.append(ids.shape) or feed(self, ids)
    )
    for way in WAYS.values():
        palm.served(model, **way)(tokens)
    # Prompts of 3, 7 and 11 tokens: 23 steps from the first tokens on, 13 behind the longest.
    assert calls[:36] == [(3,)] * 36
    assert calls[36:39] == [((1, LENGTH), {})] * 3
    assert calls[39] == ((3, LENGTH + 16), {"segments": 3 * LENGTH})
    alone = [n for prompt in (3, 7, 11) for n in (LENGTH - 1, LENGTH - prompt)]
    assert calls[40:-3] == [(1,)] * sum(alone)
    assert calls[-3:] == [((1, LENGTH + 16), {"segments": LENGTH})] * 3


@pytest.mark.parametrize("wing", WINGS)
def test_decoding_needs_no_positions_beyond_the_end(wing):
    model = model_of(wing, positions="xpos", xpos_base=1, depth=1)
    tokens = draw_tokens(model.config, 3, 48)
    for rows in ("together", "alone"):
        found = palm.compare(palm.served(model, decode=True, rows=rows), model, tokens)
        assert found.agree, found.verdict
    with pytest.raises(palm.TokenError, match=r"at most 48·xpos_base = 48 positions with xPos.*got n=49"):
        palm.served(model, decode=True)(draw_tokens(model.config, 3, 49))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 8, 25])
@pytest.mark.parametrize("rows", [1, 2, 4, 9])
def test_no_prompt_is_as_long_as_its_sequence(rows, length):
    prompts = serving._prompts(rows, length)
    assert len(prompts) == rows
    assert prompts.max() <= max(1, length // 2)
    assert len({*prompts}) == rows or rows > length // 2


def test_tokens_of_any_shape_are_served():
    model = model_of("torch", depth=1)
    tokens = draw_tokens(model.config, 2, 2, 5)
    for way in WAYS.values():
        function = palm.served(model, **way)
        np.testing.assert_allclose(function(tokens), palm.activations(model, tokens)["logits"], atol=1e-5)
        assert function(tokens[0, 0]).shape == (5, 40)
        assert function([[1], [2]]).shape == (2, 1, 40)


@pytest.fixture(params=WINGS)
def wing(request) -> Iterator[str]:
    jax.clear_caches()  # what is compiled already would not see a patch
    yield request.param
    jax.clear_caches()


def shifted(wing: Any, patch: pytest.MonkeyPatch) -> None:
    """New positions are one too small, those of the prompt are not."""
    right = wing.generate.heads_rotation
    patch.setattr(wing.generate, "heads_rotation", lambda turns, at, heads: right(turns, at - 1, heads))


def looking_ahead(wing: Any, patch: pytest.MonkeyPatch) -> None:
    """The mask lets in what lies behind a sequence: its padding."""
    right = wing.generate.masked_scores
    patch.setattr(
        wing.generate, "masked_scores", lambda zero, slopes, distance: right(zero, slopes, abs(distance))
    )


def changed_step(wing: Any, patch: pytest.MonkeyPatch, change: Callable[..., tuple[Any, Any]]) -> None:
    right = wing.decode.Layer.step

    def step(self: Any, x: Any, rotation: Any, bias: Any, keys: Any, values: Any, rows: Any) -> Any:
        x, rows = change(x, rows)
        return right(self, x, rotation, bias, keys, values, rows)

    patch.setattr(wing.decode.Layer, "step", step)


def overwritten(wing: Any, patch: pytest.MonkeyPatch) -> None:
    """The key and value of position 7 take the place of those of position 6."""
    xp = namespace(wing)
    changed_step(wing, patch, lambda x, rows: (x, xp.where(rows % LENGTH == 7, rows - 1, rows)))


def mixed(wing: Any, patch: pytest.MonkeyPatch) -> None:
    """Sequence 1 has a little of sequence 0."""
    xp = namespace(wing)

    def change(x: Any, rows: Any) -> tuple[Any, Any]:
        return (x if len(x) == 1 else xp.stack([x[0], x[1] + 0.5 * x[0], *x[2:]])), rows

    changed_step(wing, patch, change)


FAULTS: dict[Any, tuple[dict[str, Any], tuple[int, int]]] = {
    shifted: ({"positions": "rotary"}, (0, 1)),
    looking_ahead: ({"positions": "alibi"}, (0, 1)),
    overwritten: ({"positions": "rotary", "share_kv": False}, (0, 7)),
    mixed: ({"positions": "xpos"}, (1, 1)),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_of_a_decoder_is_found_where_it_begins(wing, fault, dtype, monkeypatch):
    monkeypatch.setattr(search, "_WORK", 1e8)  # no cause explains these, and to look for one takes long
    choices, first = FAULTS[fault]
    model = model_of(wing, dtype, depth=1, **choices)
    tokens = draw_tokens(model.config, 3, LENGTH)
    fault(WINGS[wing], monkeypatch)
    found = palm.compare(palm.served(model, decode=True), model, tokens)
    assert found.outcome == "differ", found.verdict
    # In bfloat16 a small difference at the first of these positions is not told apart from rounding.
    assert found.first_position == first or (dtype == "bfloat16" and found.first_position[1] > first[1])
    alone = palm.compare(palm.served(model, decode=True, rows="alone"), model, tokens)
    assert alone.agree is (fault is mixed), alone.verdict


@pytest.mark.parametrize("position", [1, 5, 6, 7, 23])
def test_a_step_that_is_wrong_at_one_position_only_is_found_whichever_that_is(position, monkeypatch):
    monkeypatch.setattr(search, "_WORK", 1e8)
    model = model_of("torch", depth=1)

    def change(x: Any, rows: Any) -> tuple[Any, Any]:
        return torch.where((rows == position)[:, None], 3 * x, x), rows

    changed_step(torch_impl, monkeypatch, change)
    found = palm.compare(palm.served(model, decode=True), model, draw_tokens(model.config, 1, LENGTH))
    assert found.outcome == "differ"
    assert found.first_position == (0, position)


@pytest.mark.parametrize("rows", [1, 3])
def test_padding_that_is_seen_is_found_and_named(rows, monkeypatch):
    monkeypatch.setattr(serving, "activations", lambda model, ids, **_: palm.activations(model, ids))
    model = model_of("torch", positions="rotary")
    tokens = draw_tokens(model.config, rows, LENGTH)
    found = palm.compare(palm.served(model, padding="left"), model, tokens)
    assert found.outcome == "differ"
    assert found.first_position == (0, 0)
    named = [one.cause for one in found.likenesses]
    assert named == (["preceding ids"] if rows == 1 else []), "with several rows, another number for each"
    if rows > 1:
        assert "Nearest is that an id 0 comes before the ids, which takes 5" in found.verdict


def compared(served: np.ndarray, plain: np.ndarray, model: Any, tokens: np.ndarray) -> Any:
    recording = record(model, tokens, label="torch")
    recording = replace(recording, taps={**recording.taps, "logits": plain})
    return compare_logits("torch rows alone", Logits(served.astype(np.float64), recording.dtype), recording)


def test_the_answer_is_about_the_side_that_is_off():
    """A value that depends on the batch is the plain side's, and that of a decoder the other side's."""
    model = model_of("torch", depth=1)
    tokens = draw_tokens(model.config, 3, LENGTH)
    right = palm.activations(model, tokens)["logits"]
    wrong = right.copy()
    wrong[1, 5:] = right[0, 5:]
    assert compared(right, right, model, tokens).verdict.endswith("Only logits are compared.")
    for served, plain, names in (
        (wrong, right, ("torch rows alone", "torch")),
        (right, wrong, ("torch", "torch rows alone")),
    ):
        found = compared(served, plain, model, tokens)
        assert (found.outcome, found.first_position) == ("differ", (1, 5))
        assert (found.label, found.other, found.one_model) == (*names, True)
        assert found.verdict.startswith(f"{names[0]} and {names[1]} differ (distance ")
        told = "They are apart from position 5 of sequence 1 on. Only logits are compared."
        assert found.verdict.endswith(told), found.verdict
        assert "\n  first apart  position 5 of sequence 1" in str(found)
        assert "position 5 of sequence 1</dd>" in found.to_html().replace("\n", "")
    with pytest.raises(ProbeError, match=r"torch must be within rounding of the referee.*palm compare torch"):
        compared(wrong, wrong, model, tokens)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_single_position_is_found_where_all_logits_together_hide_it(dtype):
    model = model_of("torch", dtype, depth=1)
    tokens = draw_tokens(model.config, 8, 64)
    right = palm.activations(model, tokens)["logits"]
    wrong, size = right.copy(), {"float32": 2e-5, "bfloat16": 0.1}[dtype]
    scale = np.sqrt(np.square(right.astype(np.float64)).mean())
    wrong[3, 9] += (size * scale * np.random.default_rng(0).standard_normal(40)).astype(right.dtype)
    assert compared(right, right, model, tokens).agree
    for served, plain in ((wrong, right), (right, wrong)):
        found = compared(served, plain, model, tokens)
        assert found.before <= found.bound
        assert (found.outcome, found.first_position, found.likenesses) == ("differ", (3, 9), ()), (
            found.verdict
        )
        assert "differ at single positions, although rounding explains the distance of all" in found.verdict
        assert found.verdict.endswith("from position 9 of sequence 3 on. Only logits are compared.")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("positions", ["alibi", "rotary"])
def test_right_positions_are_not_apart_however_many_there_are(seed, positions):
    config = small(num_tokens=40, positions=positions)
    weights = draw_weights(config, seed, dtype="bfloat16")
    model = palm.from_numpy(config, weights, backend="torch")
    tokens = draw_tokens(config, 8, 64, seed=seed)
    served = palm.served(model, padding="left")(tokens)
    found = compared(served, palm.activations(model, tokens)["logits"], model, tokens)
    assert found.agree, found.verdict


def test_logits_that_are_not_finite_are_placed():
    model = model_of("torch", depth=1)
    tokens = draw_tokens(model.config, 3, LENGTH)
    right = palm.activations(model, tokens)["logits"]
    for value in (np.nan, np.inf):
        wrong = right.copy()
        wrong[2, 9, 3] = wrong[1, 11, 0] = value
        found = compared(wrong, right, model, tokens)
        assert (found.outcome, found.not_finite, found.first_position) == ("differ", 2, (2, 9))
        assert (
            "2 of its logits are not finite. They are apart from position 9 of sequence 2 on" in found.verdict
        )


def test_what_cannot_be_served_is_refused():
    model = model_of("torch", depth=1)
    for ways, parts in (
        ({"rows": "one"}, ("rows must be one of together, alone", "'one'")),
        ({"padding": "right"}, ("padding must be one of none, left", "'right'")),
        (
            {"decode": True, "padding": "left"},
            ("padding must be none with decode", "got padding=left", "Leave"),
        ),
    ):
        with pytest.raises(ConfigError) as raised:
            palm.served(model, **ways)
        assert_explains(raised, *parts)
    with pytest.raises(palm.BackendError, match="model must be one that palm built"):
        palm.served(lambda ids: ids, decode=True)
