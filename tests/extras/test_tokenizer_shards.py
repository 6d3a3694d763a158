"""Shards of the tokenizers of Hugging Face and SentencePiece: the ids that the text itself gives."""

import json

import numpy as np
import pytest
from cases import assert_explains
from shards import inline
from trained_tokenizers import byte_level, sentences

from palm import DataError
from palm.data import pieces
from palm.data.corpus import open_corpus
from palm.data.sharding import write_shards
from palm.data.shards import MANIFEST
from palm.data.tokenizer import load_tokenizer

TEXT = "the palm grows by the sea, and the sea is naïve about the palm: €5, 🌴.\n"


@pytest.fixture(scope="module", params=["json", "model"])
def file(request, tmp_path_factory):
    file = tmp_path_factory.mktemp("tokenizers") / f"mine.{request.param}"
    file.write_bytes(byte_level(TEXT).to_str().encode() if request.param == "json" else sentences(TEXT))
    return file


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text").mkdir()
    contents = [TEXT * 30, "", "\n", TEXT.replace("\n", " ") * 30, "🌴" * 300, "naïve"]
    for index, content in enumerate(contents):
        (tmp_path / "text" / str(index)).write_text(content, "utf-8")
    return tmp_path / "text"


@pytest.mark.parametrize("piece", [7, 300, 1 << 20])
def test_the_ids_are_those_of_the_text_with_the_tokenizer(text, file, tmp_path, monkeypatch, piece):
    monkeypatch.setattr(pieces, "PIECE", piece)
    inline(monkeypatch, 900)
    out = write_shards(text, file, tmp_path / "out")
    found, whole = open_corpus(out), open_corpus(text, load_tokenizer(file))
    assert np.array_equal(found.read(0, len(found)), whole.read(0, len(whole)))
    assert (found.digest, found.bytes_per_token) == (whole.digest, whole.bytes_per_token)
    assert found.parts[0].dtype == np.uint16
    assert len(found.parts) >= 3
    assert found.tokenizer.content == file.read_bytes()
    manifest = json.loads((out / MANIFEST).read_text("utf-8"))
    assert manifest["tokenizer"]["name"] == file.name
    assert manifest["num_tokens"] == load_tokenizer(file).num_tokens == found.largest_possible + 1


def test_processes_of_their_own_write_the_same(text, file, tmp_path, monkeypatch):
    write_shards(text, file, tmp_path / "out")
    inline(monkeypatch)
    write_shards(text, file, tmp_path / "alone")
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "alone" / path.name).read_bytes()


def test_a_tokenizer_object_is_written_as_its_file(text, tmp_path, monkeypatch):
    inline(monkeypatch)
    out = write_shards(text, byte_level(TEXT), tmp_path / "out")
    assert load_tokenizer(out / "tokenizer.json").digest == open_corpus(out).tokenizer.digest


def test_a_tokenizer_of_the_same_content_goes_on_whatever_its_name(text, file, tmp_path, monkeypatch):
    inline(monkeypatch, 900)
    out = write_shards(text, file, tmp_path / "out")
    (tmp_path / f"renamed{file.suffix}").write_bytes(file.read_bytes())
    assert write_shards(text, tmp_path / f"renamed{file.suffix}", out) == out


def test_shards_of_another_tokenizer_are_refused(text, file, tmp_path, monkeypatch):
    inline(monkeypatch, 900)
    out = write_shards(text, file, tmp_path / "out")
    with pytest.raises(DataError) as raised:
        write_shards(text, "bytes", out)
    assert_explains(
        raised, "out must be new", f"out={out}", "tokenizer is", file.name, "Choose another folder"
    )


def test_a_text_that_is_no_utf8_is_named_with_its_place(text, file, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 300)
    inline(monkeypatch, 900)
    (text / "0").write_bytes((TEXT * 30).encode() + b"\xff")
    for action in (
        lambda: write_shards(text, file, tmp_path / "out"),
        lambda: open_corpus(text, load_tokenizer(file)),
    ):
        with pytest.raises(DataError) as raised:
            action()
        assert_explains(raised, f"{text / '0'} from byte", "text must be UTF-8", "Convert the text")


def test_a_text_of_no_tokens_is_refused(tmp_path, monkeypatch):
    inline(monkeypatch)
    (tmp_path / "mine.model").write_bytes(sentences(TEXT))
    (tmp_path / "text").write_bytes(b"  \n ")
    with pytest.raises(DataError, match="at least one token long"):
        write_shards(tmp_path / "text", tmp_path / "mine.model", tmp_path / "out")


def test_a_tokenizer_of_ones_own_has_no_file(text, tmp_path):
    class Other:
        name, digest, num_tokens = "other", "x", 3
        encode = decode = stream = print

    with pytest.raises(DataError) as raised:
        write_shards(text, Other(), tmp_path / "out")
    assert_explains(raised, "tokenizer must have a file", "tokenizer=other", "Save it")
