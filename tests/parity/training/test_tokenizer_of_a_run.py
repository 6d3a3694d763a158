"""A tokenizer belongs to the run, to its checkpoints and to the model, in both wings."""

import copy
import json
import shutil

import equinox as eqx
import jax
import numpy as np
import pytest
import torch
from cases import small
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import palm
from palm.checkpoint.tokenizer import checkpoint_tokenizer
from palm.training.run_folder import Run

WINGS = ("torch", "jax")
TEXT = "the palm grows by the sea, and the sea is naïve about the palm: €5.\n" * 30
OPTIONS = {"max_new_tokens": 12, "seed": 3}


@pytest.fixture(scope="module")
def tokenizer():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    )
    return made


def config(num_tokens=280):
    return small(num_tokens=num_tokens, positions="rotary", norm="layernorm", share_kv=False)


def recipe(**changes):
    return palm.Recipe(**{"steps": 4, "batch": 2, "length": 16, "warmup": 1, "validation": 0.2, **changes})


@pytest.fixture(scope="module", params=WINGS)
def trained(request, tokenizer, tmp_path_factory):
    """A run of one wing with a tokenizer, given as an object."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "text").write_text(TEXT, encoding="utf-8")
    return palm.train(
        config(),
        recipe(),
        folder / "text",
        backend=request.param,
        out=folder / "run",
        tokenizer=tokenizer,
        cadence=palm.Cadence(checkpoint_every=2, validate_every=2, sample_every=4, sample_tokens=5),
    )


def other(trained):
    return "jax" if palm.backend_of(trained.model) == "torch" else "torch"


@pytest.mark.sampled(2)
def test_the_trained_model_is_given_text_and_gives_text(trained, tokenizer):
    end = palm.generate(trained.model, "the palm ", **OPTIONS)
    assert end.text == tokenizer.decode(end.tokens.tolist())
    assert end.tokens.max() > 255 or len(end.text.encode()) > 0
    by_ids = palm.generate(trained.model, tokenizer.encode("the palm ").ids, **OPTIONS)
    assert by_ids.tokens.tolist() == end.tokens.tolist()
    # The negative control: as bytes it is another prompt, and another text.
    as_bytes = palm.generate(trained.model, "the palm ", tokenizer="bytes", **OPTIONS)
    assert as_bytes.tokens.tolist() != end.tokens.tolist()
    assert palm.tokenizer_of(trained.model) is trained.tokenizer


def test_every_checkpoint_of_the_run_has_the_tokenizer(trained, tokenizer):
    found = Run(trained.path).checkpoints()
    assert list(found) == [0, 2, 4]
    for path in (*found.values(), trained.path, trained.path / "best"):
        assert checkpoint_tokenizer(path).content == tokenizer.to_str().encode()
    assert json.loads((trained.path / "samples.jsonl").read_text("utf-8"))["text"]


def test_loaded_converted_and_saved_models_have_it(trained, tokenizer, tmp_path):
    text = palm.generate(trained.model, "the palm ", **OPTIONS).text
    wing = palm.backend_of(trained.model)
    loaded = palm.load(trained.path, backend=wing)
    assert palm.generate(loaded, "the palm ", **OPTIONS).text == text
    converted = palm.convert(loaded, backend=other(trained))
    assert palm.tokenizer_of(converted) is palm.tokenizer_of(loaded)
    saved = palm.load(palm.save(converted, tmp_path / "saved"), backend=wing)
    assert palm.generate(saved, "the palm ", **OPTIONS).text == text
    fresh = palm.build(config(), backend=wing)
    again = palm.load(palm.save(fresh, tmp_path / "fresh", tokenizer=tokenizer), backend=wing)
    assert palm.tokenizer_of(again).digest == trained.tokenizer.digest


@pytest.mark.whole
def test_the_run_goes_on_with_it_in_the_other_wing(trained, tokenizer, tmp_path):
    shutil.copytree(trained.path, tmp_path / "run")
    resumed = palm.resume(tmp_path / "run", backend=other(trained), steps=6)
    assert resumed.tokenizer.digest == trained.tokenizer.digest
    assert checkpoint_tokenizer(tmp_path / "run").digest == trained.tokenizer.digest
    assert palm.generate(resumed.model, "the palm ", **OPTIONS).text
    assert resumed.log[-1]["bits_per_byte"] < resumed.log[-1]["loss"] / np.log(2)  # a token is several bytes


def changed(model):
    """Another model that was made of this one."""
    if isinstance(model, torch.nn.Module):
        return copy.deepcopy(model)
    return eqx.tree_at(lambda tree: jax.tree.leaves(tree)[0], model, replace_fn=lambda weight: weight + 1)


def test_a_model_made_of_another_refuses_text_instead_of_reading_it_as_bytes(trained):
    made = changed(palm.load(trained.path, backend=palm.backend_of(trained.model)))
    assert palm.tokenizer_of(made) is None
    with pytest.raises(palm.TokenError, match="no tokenizer is known"):
        palm.generate(made, "the palm ", **OPTIONS)
    assert len(palm.generate(made, [1, 2], **OPTIONS).tokens) == 12
    assert palm.generate(made, "the palm ", tokenizer=trained.tokenizer, **OPTIONS).text


def test_a_wrapper_has_the_tokenizer_of_what_is_in_it(trained):
    if palm.backend_of(trained.model) == "torch":
        wrapped = torch.nn.DataParallel(trained.model)
        assert palm.tokenizer_of(wrapped) is trained.tokenizer
        text = palm.generate(trained.model, "the palm ", **OPTIONS).text
        assert palm.generate(wrapped, "the palm ", **OPTIONS).text == text


@pytest.mark.parametrize("wing", WINGS)
def test_a_vocabulary_that_lacks_ids_of_the_tokenizer_is_refused_before_anything_is_written(
    wing, tokenizer, tmp_path
):
    with pytest.raises(palm.ConfigError, match=r"num_tokens must be at least 280.*Use num_tokens=280"):
        palm.train(
            config(279), recipe(), TEXT.encode(), backend=wing, out=tmp_path / "run", tokenizer=tokenizer
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wing", WINGS)
def test_ids_without_a_tokenizer_are_not_taken_for_bytes(wing, tmp_path):
    ids = np.random.default_rng(0).integers(0, 280, 2000)
    run = palm.train(config(), recipe(), ids, backend=wing, out=tmp_path / "run")
    assert run.tokenizer is None
    for model in (run.model, palm.load(tmp_path / "run", backend=wing)):
        with pytest.raises(palm.TokenError, match="no tokenizer is known"):
            palm.generate(model, "a")
    with pytest.raises(palm.TokenError, match="no tokenizer is known"):
        palm.train(config(), recipe(), ids, backend=wing, cadence=palm.Cadence(sample_every=1))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("wing", WINGS)
def test_a_run_on_bytes_is_one_of_bytes_whatever_its_vocabulary(wing, tmp_path):
    run = palm.train(config(300), recipe(), TEXT.encode(), backend=wing, out=tmp_path / "run")
    assert run.tokenizer.name == "bytes"
    texts = [
        palm.generate(model, "the ", **OPTIONS).text
        for model in (run.model, palm.load(tmp_path / "run", backend=wing))
    ]
    assert texts[0] == texts[1]
    assert not list(tmp_path.glob("run/**/tokenizer.*"))
