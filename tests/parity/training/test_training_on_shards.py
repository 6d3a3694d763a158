"""Training on shards is training on the text that they were made of, bit for bit, in both wings."""

import json

import pytest
from cases import assert_explains, assert_same_bits, small
from shards import inline
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import palm
from palm.cli.main import main
from palm.config import BACKENDS
from palm.data import pieces
from palm.data.sharding import write_shards

TEXT = b"the palm grows by the sea, and the sea is about the palm.\n" * 40


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A text, its tokenizer, and its shards."""
    folder = tmp_path_factory.mktemp("shards")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([TEXT.decode()], trainer)
    made.save(str(folder / "mine.json"))
    (folder / "text").mkdir()
    for index in range(3):
        (folder / "text" / str(index)).write_bytes(TEXT[index:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", 300)
        inline(patch, 900)
        write_shards(folder / "text", folder / "mine.json", folder / "out")
        yield folder


def train(data, backend, **options):
    config = small(num_tokens=270)
    recipe = palm.Recipe(steps=2, batch=2, length=16, warmup=1, validation=0.2)
    return palm.train(config, recipe, data, backend=backend, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_weights_are_the_same_and_either_goes_on_with_the_other(files, backend, tmp_path):
    text = train(files / "text", backend, tokenizer=files / "mine.json", out=tmp_path / "text")
    shards = train(files / "out", backend, out=tmp_path / "shards")
    assert_same_bits(palm.to_numpy(shards.model), palm.to_numpy(text.model))
    assert shards.tokenizer.content == (files / "mine.json").read_bytes()
    assert [entry["loss"] for entry in shards.log] == [entry["loss"] for entry in text.log]
    assert shards.log[-1]["val_bits_per_byte"] == text.log[-1]["val_bits_per_byte"]
    longer = [
        palm.resume(tmp_path / "text", data=files / "out", steps=3),
        palm.resume(tmp_path / "shards", data=files / "text", steps=3),
    ]
    assert_same_bits(*(palm.to_numpy(trained.model) for trained in longer))


def test_another_tokenizer_and_a_smaller_vocabulary_are_refused(files):
    with pytest.raises(palm.DataError) as raised:
        train(files / "out", "torch", tokenizer="bytes")
    assert_explains(raised, "tokenizer must be the one that made the shards", "mine.json", "tokenizer=bytes")
    recipe = palm.Recipe(steps=1, batch=2, length=16)
    with pytest.raises(palm.ConfigError, match="num_tokens must be at least 270"):
        palm.train(small(num_tokens=269), recipe, files / "out", backend="torch")


def test_the_command_takes_the_vocabulary_from_the_shards(files, tmp_path):
    run = tmp_path / "run"
    sizes = {"dim": 8, "depth": 1, "heads": 2, "dim-head": 4, "steps": 1, "batch": 2, "length": 8}
    flags = {"backend": "torch", "data": files / "out", "out": run, **sizes}
    assert (
        main(["train", *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]) == 0
    )
    settings = json.loads((run / "run.json").read_text("utf-8"))
    assert settings["config"]["num_tokens"] == 270
    assert settings["data"]["tokenizer"] == "tokenizer.json"
    assert (run / "tokenizer.json").read_bytes() == (files / "mine.json").read_bytes()
