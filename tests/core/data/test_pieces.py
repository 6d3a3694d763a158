"""Where a text is cut: its pieces depend on the text alone, and are those of a reader of the whole text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palm import DataError
from palm.data import pieces
from palm.data.files import open_file
from palm.data.pieces import Span, cuts, encode_span, spans_of
from palm.data.tokenizer import ByteTokenizer

TEXTS = st.lists(st.sampled_from([b"a", b" ", b"\n", "€".encode(), b"\x80"]), max_size=60).map(b"".join)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 5)
    monkeypatch.setattr(pieces, "MOST_PIECES", 4)
    monkeypatch.setattr(pieces, "_CHUNK", 3)


def of_whole(text, least=5, most=20):
    """The same cuts, of a text in memory."""
    start, found = 0, []
    while start < len(text):
        line = text.find(b"\n", start + least, start + 2 * least) + 1
        word = text.find(b" ", start + least, start + most)
        stop = line or (word if word > 0 else min(len(text), start + most))
        starts = [i for i in range(stop, stop - 4, -1) if text[i : i + 1] and text[i] & 0xC0 != 0x80]
        if not line and word < 0 and stop < len(text) and starts:
            stop = starts[0]
        found.append(stop)
        start = stop
    return found


def array(text):
    return np.frombuffer(text, np.uint8)


@settings(max_examples=300)
@given(TEXTS, st.booleans())
def test_the_cuts_are_those_of_the_whole_text(text, is_followed):
    whole = text + b"\n" * is_followed
    found = list(cuts(Span(array(text), is_followed, 0, len(whole))))
    assert found == of_whole(whole)


@settings(max_examples=100)
@given(TEXTS, st.data())
def test_from_any_cut_on_they_are_the_same(text, data):
    found = list(cuts(Span(array(text), True, 0, len(text) + 1)))
    at = data.draw(st.integers(0, len(found) - 1))
    assert list(cuts(Span(array(text), True, found[at], len(text) + 1))) == found[at + 1 :]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", []),
        (b"12345", [5]),
        (b"123456\n89\n", [7, 10]),
        (b"1234567890 ", [10, 11]),
        (b"1\n34567890123", [13]),
        (b"a" * 50, [20, 40, 50]),
        ("€".encode() * 15, [18, 36, 45]),
        (b"\x80" * 50, [20, 40, 50]),
    ],
)
def test_where_a_text_is_cut(text, expected):
    assert list(cuts(Span(array(text), False, 0, len(text)))) == expected == of_whole(text)


def test_texts_joined_with_newlines_are_encoded_one_by_one(tmp_path):
    texts = [b"first line\nand more of it", b"", b"", b"last\n"]
    for index, text in enumerate(texts):
        (tmp_path / str(index)).write_bytes(text)
    spans = spans_of([open_file(tmp_path / str(index)) for index in range(4)])
    found = [encode_span(span, ByteTokenizer(), np.dtype("u1"), "text") for span in spans]
    counts, ids = zip(*(piece for pieces in found for piece in pieces), strict=True)
    assert b"".join(map(bytes, ids)) == b"\n".join(texts)
    assert list(counts) == list(map(len, ids))
    assert max(counts) <= 20


class Ascii(ByteTokenizer):
    def encode(self, text):
        if max(text, default=0) > 127:
            raise DataError("text must be ASCII.")
        return super().encode(text)


@pytest.mark.parametrize(("before", "where"), [(b"", ": text"), (b"123456\n", " from byte 7 on: text")])
def test_a_text_that_cannot_be_encoded_is_named_with_its_place(tmp_path, before, where):
    (tmp_path / "t").write_bytes(before + b"\xff")
    for text, name in ((open_file(tmp_path / "t"), tmp_path / "t"), (array(before + b"\xff"), "mine")):
        with pytest.raises(DataError) as raised:
            list(encode_span(spans_of([text])[0], Ascii(), np.dtype("u1"), "mine"))
        assert str(raised.value) == f"{name}{where} must be ASCII."
