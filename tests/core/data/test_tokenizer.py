"""Bytes as tokens, and what is said of tokenizer files that cannot be used."""

import sys

import numpy as np
import pytest
from cases import assert_explains
from hypothesis import given, settings
from hypothesis import strategies as st

from palm import ConfigError, DataError, MissingFrameworkError
from palm.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer, vocabulary_size

BYTES = ByteTokenizer()
TEXT = "naïve €5 🌴\n"


def streamed(tokenizer, ids):
    stream = tokenizer.stream()
    return [*map(stream.feed, ids), stream.finish()]


def test_no_file_means_bytes():
    tokenizer = load_tokenizer(None)
    assert isinstance(tokenizer, ByteTokenizer)
    assert (tokenizer.name, tokenizer.digest, tokenizer.num_tokens) == ("bytes", "bytes", 256)


@pytest.mark.parametrize("text", [TEXT, TEXT.encode()])
def test_a_text_is_its_utf8(text):
    ids = BYTES.encode(text)
    assert ids.dtype == np.int64
    assert ids.tolist() == list(TEXT.encode())
    assert BYTES.decode(ids) == TEXT


def test_the_empty_text_has_no_ids():
    assert BYTES.encode("").shape == (0,)
    assert BYTES.decode([]) == ""


def test_bytes_that_are_no_text_are_taken_as_they_are():
    assert BYTES.encode(b"\xff\x00").tolist() == [255, 0]


@settings(max_examples=200)
@given(st.text())
def test_every_text_comes_back(text):
    assert BYTES.decode(BYTES.encode(text)) == text


@settings(max_examples=200)
@given(st.lists(st.integers(-2, 300)))
def test_any_ids_decode_and_one_by_one_to_the_same(ids):
    whole = BYTES.decode(ids)
    assert "".join(streamed(BYTES, ids)) == whole
    runs = np.array([*ids, 256])
    ends = np.flatnonzero((runs < 0) | (runs > 255))
    starts = [0, *(ends[:-1] + 1)]
    assert whole + "\ufffd" == "".join(
        bytes(ids[start:end]).decode(errors="replace") + "\ufffd"
        for start, end in zip(starts, ends, strict=True)
    )


def test_ids_that_are_no_bytes_are_replaced():
    assert BYTES.decode([72, 256, 105, -1, 10**9]) == "H\ufffdi\ufffd\ufffd"
    assert BYTES.decode(np.array([226, 300, 130])) == "\ufffd\ufffd\ufffd"


def test_a_stream_gives_whole_characters():
    assert streamed(BYTES, "a€".encode()) == ["a", "", "", "€", ""]
    assert streamed(BYTES, "€".encode()[:2]) == ["", "", "\ufffd"]
    assert streamed(BYTES, b"\xe2\x82a") == ["", "", "\ufffda", ""]


def test_half_a_surrogate_pair_is_no_text():
    with pytest.raises(DataError) as raised:
        BYTES.encode("ab\ud800")
    assert_explains(raised, "text must be Unicode", "at character 2", "Pass bytes")


@pytest.mark.parametrize("name", ["book.txt", "tokenizer", "vocab.JSON"])
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    with pytest.raises(DataError) as raised:
        load_tokenizer(tmp_path / name)
    assert_explains(raised, "tokenizer must be a .json file", f"tokenizer={tmp_path / name}", "leave it out")


@pytest.mark.parametrize("kind", ["json", "model"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, kind):
    with pytest.raises(DataError) as raised:
        load_tokenizer(str(tmp_path / f"t.{kind}"))
    assert_explains(raised, "tokenizer must be a readable file", f"t.{kind}", "No such file")


@pytest.mark.parametrize(("kind", "package"), [("json", "tokenizers"), ("model", "sentencepiece")])
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(
    tmp_path, monkeypatch, kind, package
):
    monkeypatch.setitem(sys.modules, package, None)
    file = tmp_path / f"t.{kind}"
    file.write_bytes(b"{}")
    with pytest.raises(MissingFrameworkError) as raised:
        load_tokenizer(file)
    words = (
        f'tokenizer="{file}" needs {package}; it is not installed. Run: pip install "palm-dual[tokenizers]".'
    )
    assert str(raised.value) == words


class Words:
    """A tokenizer of somebody's own making."""

    name, digest, num_tokens = "words", "0", 300

    def encode(self, text):
        return np.array([len(word) for word in text.split()])

    def decode(self, ids):
        return " ".join("x" * count for count in ids)

    def stream(self):
        raise NotImplementedError


def test_bytes_are_asked_for_by_name():
    assert isinstance(load_tokenizer("bytes"), ByteTokenizer)


def test_a_tokenizer_of_ones_own_is_taken_as_it_is():
    own = Words()
    assert isinstance(own, Tokenizer)
    assert load_tokenizer(own) is own
    assert load_tokenizer(BYTES) is BYTES


@pytest.mark.parametrize("other", [3, object(), b"tokenizer.json", ["tokenizer.json"], {}])
def test_what_is_no_tokenizer_is_refused(other):
    with pytest.raises(DataError) as raised:
        load_tokenizer(other)
    assert_explains(
        raised, "tokenizer must be a path, a tokenizers.Tokenizer", "got tokenizer=", "pass the path"
    )


def test_a_vocabulary_is_the_tokenizers_unless_a_larger_one_is_given():
    assert vocabulary_size(Words()) == 300
    assert vocabulary_size(Words(), 300) == 300
    assert vocabulary_size(Words(), 512) == 512
    assert vocabulary_size(BYTES) == 256
    assert vocabulary_size(BYTES, 13) == 13  # a text may lack some bytes


def test_a_vocabulary_that_lacks_ids_of_the_tokenizer_is_refused():
    with pytest.raises(ConfigError) as raised:
        vocabulary_size(Words(), 299)
    assert_explains(
        raised,
        "num_tokens must be at least 300",
        "tokenizer=words",
        "got num_tokens=299",
        "Use num_tokens=300",
    )
