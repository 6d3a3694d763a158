"""Tokenizer files that make their package raise or panic: always a `DataError`, at reading or at the text."""

import base64
import json
import os
import time
from pathlib import Path

import pytest

from palm import DataError
from palm.data.tokenizer import load_tokenizer
from palm.data.tokenizer_file import FileTokenizer, read_tokenizer_file

pytest.importorskip("tokenizers")
PARTS = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
EMPTY = {"version": "1.0", **dict.fromkeys(PARTS), "added_tokens": []}
VOCABULARY = {"a": 0, "b": 1}
LACKING = {
    "WordLevel": {"type": "WordLevel", "vocab": VOCABULARY, "unk_token": "[UNK]"},
    "BPE": {"type": "BPE", "vocab": VOCABULARY, "merges": [], "unk_token": "[UNK]"},
    "Unigram": {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]]},
    "Unigram beyond": {"type": "Unigram", "unk_id": 7, "vocab": [["a", -1.0]]},
    "WordPiece": {
        "type": "WordPiece",
        "vocab": VOCABULARY,
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    },
}
CHARSMAPS = [
    b"",
    b"junk",
    bytes(8),
    b"\x04\0\0\0",
    b"\x04\0\0\0\xff\xff\xff\xff",
    b"\xff" * 64,
    b"\x05" + bytes(9),
]


def refused(content: dict) -> str:
    tokenizer = FileTokenizer("t.json", json.dumps({**EMPTY, **content}).encode())
    with pytest.raises(DataError) as raised:
        tokenizer.encode("hello")
    return str(raised.value)


@pytest.mark.parametrize("model", LACKING.values(), ids=LACKING)
def test_a_missing_unknown_token_is_a_data_error(model):
    assert refused({"model": model}).startswith("tokenizer must be a file that tokenizers can read")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("charsmap", CHARSMAPS, ids=bytes.hex)
def test_a_table_of_junk_is_a_data_error_and_no_panic(charsmap, nested):
    inner = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
    normalizer = {"type": "Sequence", "normalizers": [inner]} if nested else inner
    model = {"type": "BPE", "vocab": VOCABULARY, "merges": []}
    assert refused({"normalizer": normalizer, "model": model}).startswith("tokenizer must be a file")


def test_an_interrupt_is_none_of_the_packages_errors():
    tokenizer = FileTokenizer("t.json", json.dumps({**EMPTY, "model": LACKING["BPE"]}).encode())
    with pytest.raises(KeyboardInterrupt), tokenizer._refusing():
        raise KeyboardInterrupt


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: Path(file).symlink_to("/dev/zero"), os.mkdir])
@pytest.mark.parametrize("suffix", [".json", ".model"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, make, suffix):
    make(tmp_path / f"t{suffix}")
    started = time.perf_counter()
    with pytest.raises(DataError, match="must be a readable file"):
        load_tokenizer(tmp_path / f"t{suffix}")
    assert time.perf_counter() - started < 3


@pytest.mark.parametrize("name", ["a\0b.json", "\ud800.json"])
def test_a_name_that_no_file_has_is_refused(name):
    with pytest.raises(DataError, match="must be a readable file"):
        read_tokenizer_file(name)
