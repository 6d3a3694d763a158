"""`palm.evaluate` and `palm eval`: the same numbers in both wings, and those of the whole forward pass."""

from __future__ import annotations

import json
import math

import jax
import numpy as np
import pytest
from cases import small
from support import pair

import palm
from palm.cli.main import main

TEXT = bytes(range(32, 127)) * 2


@pytest.fixture(scope="module")
def models():
    with jax.enable_x64(True):
        yield dict(zip(("torch", "jax"), pair(small(num_tokens=256), "float64", "cpu"), strict=True))


def by_hand(model, ids, length, stride):
    """Each token's loss, from the logits of the whole pass over its window."""
    losses, done = [], 1
    while done < len(ids):
        stop = min(len(ids), done + (stride if done > 1 else length))
        start = max(0, stop - length - 1)
        logits = palm.activations(model, ids[start:stop])["logits"]
        for token in range(done, stop):
            shifted = logits[token - 1 - start] - logits.max()
            losses.append(math.log(np.exp(shifted).sum()) - shifted[ids[token]])
        done = stop
    return np.array(losses)


@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_losses_are_those_of_each_token_by_hand(wing, models):
    ids = np.frombuffer(TEXT, np.uint8)[:30].astype(int)
    found = palm.evaluate(models[wing], bytes(TEXT[:30]), length=8, stride=3, batch=4)
    hand = by_hand(models[wing], ids, 8, 3)
    assert found.tokens == 29
    assert abs(found.nats_per_token - hand.mean()) <= 1e-12
    assert abs(by_hand(models[wing], ids, 8, 8).mean() - hand.mean()) > 1e-6  # another context, another loss


@pytest.mark.parametrize(("length", "stride"), [(16, None), (16, 5), (400, 7)])
def test_both_wings_give_the_same_numbers(length, stride, models):
    torch, jaxs = (palm.evaluate(models[w], TEXT, length=length, stride=stride) for w in ("torch", "jax"))
    assert np.array_equal(torch.counts, jaxs.counts)
    assert np.abs(torch.losses - jaxs.losses).max() <= 1e-12 * np.abs(torch.losses).max()
    assert torch.digest == jaxs.digest
    assert abs(torch.perplexity / jaxs.perplexity - 1) <= 1e-12
    assert (torch.standard_error is None) == (length == 400)


def test_the_batch_changes_nothing_and_bits_are_those_of_bytes(models):
    one, all_ = (palm.evaluate(models["torch"], TEXT, length=16, batch=batch) for batch in (1, 5))
    assert np.abs(one.losses - all_.losses).max() <= 1e-12 * one.losses.max()
    assert one.bits_per_byte == pytest.approx(one.nats_per_token / math.log(2))
    assert palm.evaluate(models["torch"], np.array(list(TEXT))).bits_per_byte is None


def test_a_model_is_as_good_as_itself_and_another_one_is_not(models):
    other = palm.build(small(num_tokens=256), backend="torch", seed=5)
    a, b = (palm.evaluate(model, TEXT, length=16) for model in (models["torch"], other))
    assert a.against(a).difference == 0
    assert a.against(a).is_noise
    assert a.against(b).difference == -b.against(a).difference != 0
    with pytest.raises(palm.DataError, match="evaluations must be of the same tokens"):
        a.against(palm.evaluate(other, TEXT, length=8))


def test_one_model_in_both_frameworks_differs_by_rounding_and_a_changed_one_by_more():
    model = palm.build(small(num_tokens=256), backend="torch", dtype="float32")
    ported = palm.convert(model, backend="jax")
    a, b = (palm.evaluate(one, 20 * TEXT, length=16) for one in (model, ported))
    assert 0 < abs(a.against(b).difference) < a.against(b).resolution < 1e-5
    assert a.against(b).is_rounding
    weights = palm.to_numpy(model)
    weights["embedding"] = weights["embedding"] * np.float32(1.001)
    changed = palm.evaluate(palm.from_numpy(model.config, weights, backend="torch"), 20 * TEXT, length=16)
    assert not a.against(changed).is_noise


@pytest.mark.parametrize(
    ("data", "options", "error", "why"),
    [
        (TEXT, {"length": 4, "stride": 5}, palm.ConfigError, "stride must be at most the length"),
        (b"a", {}, palm.DataError, "data must be at least two tokens long"),
        (np.array([1, 300]), {}, palm.DataError, "ids below num_tokens=256"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(data, options, error, why, models):
    with pytest.raises(error, match=why):
        palm.evaluate(models["torch"], data, **options)


def test_a_text_is_refused_where_no_tokenizer_is_known_but_ids_are_not():
    model = palm.build(small(num_tokens=300), backend="torch")
    with pytest.raises(palm.TokenError, match="no tokenizer is known"):
        palm.evaluate(model, b"a text")
    assert palm.evaluate(model, np.arange(20)).tokens == 19


def test_the_command_says_which_model_has_no_tokenizer(tmp_path, capsys):
    (tmp_path / "text").write_text("The palm by the sea. " * 4)
    names = [str(tmp_path / name) for name in "ab"]
    for name, vocabulary in zip(names, (256, 300), strict=True):
        palm.save(palm.build(small(num_tokens=vocabulary, depth=1), backend="torch"), name)
    assert main(["eval", *names, "--text", str(tmp_path / "text"), "--length", "16"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert f"{names[1]}: data must be ids, because no tokenizer is known for this model" in told.err


def test_the_command_prints_the_numbers_of_one_model_and_the_gap_of_two(tmp_path, capsys):
    text = tmp_path / "text"
    text.write_bytes(TEXT)
    for seed in range(2):
        palm.save(palm.build(small(num_tokens=256), backend="torch", seed=seed), tmp_path / str(seed))
    names = [str(tmp_path / "0"), str(tmp_path / "1")]
    assert main(["eval", names[0], "--text", str(text), "--length", "16", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = palm.evaluate(palm.load(names[0], backend="torch"), text, length=16)
    assert told["models"][0] == {"model": names[0], **found.to_dict()}
    assert told["gap"] is None
    assert main(["eval", *names, "--text", str(text), "--length", "16", "--backend", "jax"]) == 0
    printed = capsys.readouterr().out
    assert f"The loss of {names[0]} is " in printed
    assert "189 tokens of" in printed
    assert main(["eval", *names, names[0], "--text", str(text)]) == 2
    assert main(["eval", names[0], "--text", str(text), "--length", "0"]) == 2
    assert "length must be a whole number of at least 1" in capsys.readouterr().err
