"""Tokenizer files that make their package raise or panic: always a `DataError`, at reading or at the text."""

import base64
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from cases import at_most

from palm import DataError
from palm.data.charsmap import check_charsmap
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


def table(units: dict[int, int], texts: bytes = b"xy\0", count: int = 1024) -> bytes:
    trie = np.zeros(count, "<u4")
    for place, unit in units.items():
        trie[place] = unit
    return trie.nbytes.to_bytes(4, "little") + trie.tobytes() + texts


def to(place: int, target: int, letter: int = 0, leaf: int = 0) -> int:
    """A unit at `place` from which the next one is found at `target`."""
    return (place ^ target) << 10 | leaf << 8 | letter


A = 0x100 ^ ord("a")  # where the root leads to with an a
LEADS_OUT = {
    "too short": table({0: to(0, 0x100)}, count=256),
    "beyond the trie": table({0: to(0, 0x100), A: to(A, 0x3FFFF, ord("a"))}),
    "beyond the trie, far": table({0: 0x3FFFFF << 10 | 1 << 9}),
    "beyond the texts": table({0: to(0, 0x100), A: to(A, 0x200, ord("a"), 1), 0x200: 1 << 31 | 9999}),
    "into a character": table({0: to(0, 0x100), A: to(A, 0x200, ord("a"), 1), 0x200: 1}, "é\0".encode()),
}


@pytest.mark.parametrize("charsmap", LEADS_OUT.values(), ids=LEADS_OUT)
def test_a_table_that_leads_out_of_itself_is_a_data_error_and_no_panic(charsmap, capfd):
    normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
    assert "precompiled_charsmap must" in refused({"normalizer": normalizer, "model": LACKING["BPE"]})
    assert capfd.readouterr().err == ""


def test_a_table_that_leads_in_a_circle_or_to_its_texts_is_read():
    ends = {0: to(0, 0x100), A: to(A, 0x200, ord("a"), 1), 0x200: 1 << 31 | 1}
    check_charsmap(table(ends))
    check_charsmap(table({0: to(0, 0x100), A: to(A, 0x100, ord("a"))}))


def test_a_real_table_is_read():
    """The one that SentencePiece puts into its models: NFKC."""
    written = io.BytesIO()
    pytest.importorskip("sentencepiece").SentencePieceTrainer.train(
        sentence_iterator=iter(["the palm grows by the sea"] * 9),
        model_writer=written,
        vocab_size=19,
        minloglevel=9,
    )
    model = written.getvalue()
    name = b"nmt_nfkc\x12"  # the normalizer's name, and then the field of its table with a length
    at = model.index(name) + len(name)
    size, shift = 0, 0
    while True:
        size, shift, at = size | (model[at] & 127) << shift, shift + 7, at + 1
        if model[at - 1] < 128:
            break
    charsmap = model[at : at + size]
    assert len(charsmap) > 100_000
    check_charsmap(charsmap)
    normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
    content = {
        **EMPTY,
        "normalizer": normalizer,
        "model": {"type": "WordLevel", "vocab": {"fi": 1}, "unk_token": "fi"},
    }
    assert FileTokenizer("t.json", json.dumps(content).encode()).encode("\ufb01").tolist() == [1]


def test_an_interrupt_is_none_of_the_packages_errors():
    tokenizer = FileTokenizer("t.json", json.dumps({**EMPTY, "model": LACKING["BPE"]}).encode())
    with pytest.raises(KeyboardInterrupt), tokenizer._refusing():
        raise KeyboardInterrupt


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: Path(file).symlink_to("/dev/zero"), os.mkdir])
@pytest.mark.parametrize("suffix", [".json", ".model"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, make, suffix):
    make(tmp_path / f"t{suffix}")
    with at_most(3), pytest.raises(DataError, match="must be a readable file"):
        load_tokenizer(tmp_path / f"t{suffix}")


@pytest.mark.parametrize("name", ["a\0b.json", "\ud800.json"])
def test_a_name_that_no_file_has_is_refused(name):
    with pytest.raises(DataError, match="must be a readable file"):
        read_tokenizer_file(name)
