"""What `palm train` makes of its flags, before any framework is loaded."""

from types import SimpleNamespace

import numpy as np
import pytest
import tyro
from cases import ROOT
from shards import write_rows

from palm import ConfigError, preset, recipe
from palm.checkpoint.checkpoint import load_arrays
from palm.cli.main import STYLE, main
from palm.cli.train import TrainRequest, _beside, _config, _continues, _sizes
from palm.data.corpus import open_corpus
from palm.training.run_folder import Run

RUN = ROOT / "tests/fixtures/v0_1_0/run-jax-tokenizer"
TOKENIZER = RUN / "tokenizer.json"
TEXT = open_corpus(b"a text")


def asked(*words: object) -> TrainRequest:
    return tyro.cli(TrainRequest, args=[*map(str, words)], config=STYLE)


@pytest.mark.parametrize(
    ("words", "num_tokens"),
    [
        ([], 256),
        (["--tokenizer", TOKENIZER], 300),
        (["--tokenizer", TOKENIZER, "--num-tokens", "512"], 512),
        (["--num-tokens", "512"], 512),
    ],
)
def test_the_tokenizer_sets_the_vocabulary_unless_it_is_given(words, num_tokens, monkeypatch):
    sizes = {
        TOKENIZER: SimpleNamespace(name=TOKENIZER.name, num_tokens=300)
    }  # the package that reads it may be missing here
    monkeypatch.setattr("palm.cli.train.load_tokenizer", sizes.__getitem__)
    config = _config(asked("--preset", "tiny", *words), TEXT)
    assert config == preset("tiny", num_tokens=num_tokens)
    with pytest.raises(ConfigError, match="num_tokens must be at least 300, the vocabulary of tokenizer="):
        _config(asked("--tokenizer", TOKENIZER, "--num-tokens", "299"), TEXT)


@pytest.mark.parametrize(
    ("words", "loggers", "profile"),
    [
        ([], [], None),
        (["--tensorboard"], ["tensorboard"], None),
        (["--log", "wandb", "tensorboard", "--tensorboard"], ["wandb", "tensorboard"], None),
        (["--profile", "10-12", "--log", "trackio"], ["trackio"], "10-12"),
    ],
)
def test_loggers_and_a_profile_are_handed_on(words, loggers, profile):
    assert _beside(asked(*words)) == {"loggers": loggers, "profile": profile}


def test_the_frozen_parameters_are_counted():
    config = preset("tiny", num_tokens=256, dim=16, depth=1).resolve("torch")
    assert _sizes(config, recipe("bytes", freeze="embedding|norm")).endswith(
        "parameters, 4,112 of them frozen,"
    )
    assert "frozen" not in _sizes(config, recipe("bytes"))


def test_an_unknown_logger_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--log", "tensorbored"])
    assert "tensorboard" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "num_tokens"), [([], 300), (["--num-tokens", "512"], 512)])
def test_shards_set_the_vocabulary_even_if_nothing_reads_their_tokenizer(words, num_tokens, tmp_path):
    shards = open_corpus(write_rows(tmp_path / "shards", [np.arange(5)], 300))
    config = _config(asked("--preset", "tiny", *words), shards)
    assert config == preset("tiny", num_tokens=num_tokens)


@pytest.mark.parametrize("path", [RUN, RUN / "best", RUN / "step-00000004"])
def test_a_run_starts_from_the_checkpoint_of_another(path):
    config = _config(asked("--checkpoint", path, "--tokenizer", TOKENIZER), TEXT)
    assert config == load_arrays(RUN / "step-00000004")[0]


@pytest.mark.parametrize("words", [["--preset", "tiny"], ["--dim", "8"]])
def test_a_checkpoint_has_its_own_config(words):
    with pytest.raises(ConfigError, match="a checkpoint must come without --preset and flags of the model"):
        _config(asked("--checkpoint", RUN, *words), TEXT)


@pytest.mark.parametrize(
    ("content", "out", "says"),
    [
        (None, "new", "data must be a readable file"),
        (b"", "new", "data must be at least one byte long; got data={data}. It is empty"),
        (b"short", "new", "got 5 tokens of {data}."),
        (b"long " * 9999, ".", "out must be a new or empty folder; got out={out}."),
    ],
    ids=["missing", "empty", "short", "out"],
)
def test_what_cannot_be_trained_on_is_said_before_anything_else(content, out, says, tmp_path, capsys):
    data, out = tmp_path / "text", tmp_path / out
    if content is not None:
        data.write_bytes(content)
    command = ["train", "--preset", "tiny", "--backend", "torch"]
    assert main([*command, "--data", str(data), "--out", str(out)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert says.format(data=data, out=out) in line
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "missing"),
    [([], "--data and --out"), (["--data", "text"], "--out"), (["--out", "run"], "--data")],
)
def test_a_new_run_needs_its_data_and_its_folder(words, missing, capsys):
    assert main(["train", *words]) == 2
    assert f"; {missing} is missing. " in capsys.readouterr().err


def test_a_run_that_goes_on_says_where_and_what_becomes_of_its_rate():
    settings = Run(RUN).settings()
    own, total = settings["backend"], settings["recipe"]["steps"]
    other = {"torch": "jax", "jax": "torch"}[own]
    assert _continues(Run(RUN), settings, own, total) == [f"continues at step 4 of {total} in {own}"]
    told = f"continues at step 4 of {total} ({own} before, {other} now)"
    assert _continues(Run(RUN), settings, other, total) == [told]
    [told] = _continues(Run(RUN), settings, own, 10 * total)
    assert told.startswith(
        f"continues at step 4 of {10 * total} in {own}; the learning rate goes from 0.004 to"
    )
    settings["recipe"]["schedule"] = "constant"
    assert _continues(Run(RUN), settings, own, 10 * total) == [
        f"continues at step 4 of {10 * total} in {own}"
    ]
