"""A model with a tokenizer is compared on its tokens; `--data` is what `palm train` takes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from cases import draw_weights, small
from trained_tokenizers import byte_level

from palm.checkpoint.checkpoint import save_arrays
from palm.checkpoint.tokenizer import checkpoint_tokenizer
from palm.cli import compare as command
from palm.cli import record as recording
from palm.cli.main import main
from palm.data.corpus import open_corpus
from palm.data.sharding import write_shards
from palm.data.tokenizer_file import FileTokenizer

TEXT = "the palm grows by the sea, and the sea is naïve about the palm: €5.\n" * 40
OTHER = "another line makes other merges, merges of other words, words of another line.\n"
WINDOWS = ["--batch", "3", "--length", "20"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A text, two tokenizers, checkpoints with one of them or with none, ids and shards."""
    folder = tmp_path_factory.mktemp("sides")
    (folder / "text").write_text(TEXT, "utf-8")
    (folder / "shards-of").mkdir()
    (folder / "shards-of" / "text").write_text(TEXT, "utf-8")
    for name, line in (("mine", TEXT), ("other", OTHER)):
        (folder / f"{name}.json").write_text(byte_level(line).to_str(), "utf-8")
    own = {n: FileTokenizer(f"{n}.json", (folder / f"{n}.json").read_bytes()) for n in ("mine", "other")}
    for name, tokens, tokenizer in (
        ("mine", 300, own["mine"]),
        ("again", 300, own["mine"]),
        ("other", 300, own["other"]),
        ("narrow", 270, own["mine"]),
        ("plain", 300, None),
    ):
        config = small(num_tokens=tokens)
        save_arrays(config, draw_weights(config), folder / f"model-{name}", tokenizer=tokenizer)
    np.save(folder / "ids.npy", np.arange(299, 200, -1, dtype=np.uint16))
    write_shards(folder / "shards-of", own["mine"], folder / "shards")
    return folder


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What a command would run: its tokens, and what the report says of them."""
    found = {}

    def stop(*sides, **more):
        found["tokens"] = next(one for one in sides if hasattr(one, "tokens")).tokens
        return SimpleNamespace(to_dict=dict)

    def show(report, out):
        found["run"] = report["run"]
        return 0

    monkeypatch.setattr(command, "compare_sides", stop)
    monkeypatch.setattr(command, "show", show)
    monkeypatch.setattr(recording, "record_side", stop)

    def ask(*arguments):
        assert main(["compare", *arguments, *WINDOWS, "--out", str(tmp_path / "out")]) == 0
        return found

    return ask


def is_in(ids, windows):
    row = ids.tolist()
    return all(any(row[at : at + len(one)] == one for at in range(len(row))) for one in windows.tolist())


def test_a_text_is_encoded_by_the_tokenizer_of_the_checkpoint(files, asked):
    found = asked("--checkpoint", str(files / "model-mine"), "--data", str(files / "text"))
    own = FileTokenizer("mine.json", (files / "mine.json").read_bytes())
    [tokens] = found["tokens"]
    assert tokens.max() >= 256  # as no byte is
    assert is_in(own.encode(TEXT), tokens)
    assert found["run"]["tokens"] == "tokenizer.json"


def test_a_text_is_bytes_for_a_model_without_a_tokenizer(files, asked):
    found = asked("--checkpoint", str(files / "model-plain"), "--data", str(files / "text"))
    assert all(bytes(row.tolist()) in TEXT.encode() for row in found["tokens"][0])
    assert found["run"]["tokens"] == "bytes"


def test_one_side_alone_may_have_the_tokenizer(files, asked):
    sides = f"torch:{files / 'model-plain'}", f"jax:{files / 'model-mine'}"
    assert asked(*sides, "--data", str(files / "text"))["run"]["tokens"] == "tokenizer.json"
    sides = f"torch:{files / 'model-again'}", f"jax:{files / 'model-mine'}"
    assert asked(*sides, "--data", str(files / "text"))["run"]["tokens"] == "tokenizer.json"


@pytest.mark.parametrize("model", ["mine", "plain"])
def test_ids_in_a_numpy_file_are_ids(files, asked, model):
    found = asked("--checkpoint", str(files / f"model-{model}"), "--data", str(files / "ids.npy"))
    assert is_in(np.load(files / "ids.npy"), found["tokens"][0])
    assert found["run"]["tokens"] == "ids"


@pytest.mark.parametrize("model", ["mine", "plain"])
def test_shards_bring_their_tokenizer(files, asked, model):
    found = asked("--checkpoint", str(files / f"model-{model}"), "--data", str(files / "shards"))
    ids = open_corpus(files / "shards")
    assert is_in(ids.read(0, len(ids)), found["tokens"][0])
    assert found["run"]["tokens"] == "mine.json"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["torch:model-mine", "jax:model-other"], "must have the same tokenizer; got"),
        (
            ["--checkpoint", "model-other", "--data", "shards"],
            "tokenizer must be the one that made the shards",
        ),
        (["--checkpoint", "model-narrow", "--data", "text"], "num_tokens must be at least 291"),
        (["--preset", "tiny", "--data", "ids.npy"], "data must be ids below num_tokens=256; got id 299"),
    ],
)
def test_what_does_not_fit_is_refused(files, asked, capsys, monkeypatch, arguments, says):
    monkeypatch.chdir(files)
    assert main(["compare", *arguments, *WINDOWS, "--out", "out"]) == 2
    assert says in capsys.readouterr().err


def test_a_recording_has_the_tokens_of_the_tokenizer_and_says_so(files, tmp_path, capsys):
    side, out = f"torch:{files / 'model-mine'}", tmp_path / "bundle"
    pytest.importorskip("torch")
    data = ["--data", str(files / "text"), *WINDOWS]
    assert main(["record", side, *data, "--out", str(out)]) == 0
    assert "3 × 20 tokens (tokenizer.json)" in capsys.readouterr().out
    assert json.loads((out / "bundle.json").read_text())


@pytest.mark.whole
def test_both_wings_agree_and_train_on_the_tokens_of_the_tokenizer(files, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    arguments = ["--checkpoint", str(files / "model-mine"), "--data", str(files / "text"), *WINDOWS]
    assert main(["compare", *arguments, "--train", "2", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["run"]["tokens"] == "tokenizer.json"
    assert "tokens" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("tokens", "status"), [(300, 0), (270, 2)])
def test_an_import_keeps_a_tokenizer_that_is_given(files, tmp_path, monkeypatch, capsys, tokens, status):
    config = small(num_tokens=tokens)
    found = config, draw_weights(config), None, {}
    monkeypatch.setattr("palm.cli.models._imported", lambda *given: found)
    tokenizer, out = files / "mine.json", tmp_path / "out"
    assert main(["import", "palm_jax.palm", "x.eqx", str(out), "--tokenizer", str(tokenizer)]) == status
    if status:
        assert "num_tokens must be at least 291" in capsys.readouterr().err
        assert not out.exists()
    else:
        assert checkpoint_tokenizer(out).content == tokenizer.read_bytes()
