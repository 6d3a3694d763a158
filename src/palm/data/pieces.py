"""Text encoded piece by piece: where a piece ends depends on the text alone, and memory holds only a few."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from palm.data.files import File, Part, read_part, sha256, size_of
from palm.data.tokenizer import ByteTokenizer, Tokenizer
from palm.errors import DataError

# A piece has at least so many bytes, but for the last one of a text; and at most so many times as many.
PIECE, MOST_PIECES = 1 << 20, 16
# What is read at a time to find the end of a piece.
_CHUNK = 1 << 16

Read = Callable[[int, int], bytes]


class Span(NamedTuple):
    """Bytes start … stop - 1 of a text, from the beginning of a piece to the end of one.

    A text that is followed by another one ends with a newline, which its file need not have.
    """

    text: Part
    is_followed: bool
    start: int
    stop: int


def spans_of(texts: Sequence[Part]) -> list[Span]:
    """Texts joined with newlines, each as a whole."""
    last = len(texts) - 1
    return [Span(text, i < last, 0, size_of(text) + (i < last)) for i, text in enumerate(texts)]


def cuts(span: Span) -> Iterator[int]:
    """Where the pieces of a span end.

    That is at the end of a line if one ends within a second `PIECE`, or else before the next space; where
    there is none for `MOST_PIECES`, between two characters.
    """
    read, start = partial(_read, span), span.start
    while start < span.stop:
        start = _end_of_piece(read, start, span.stop)
        yield start


def encode_span(
    span: Span, tokenizer: Tokenizer, dtype: np.dtype, name: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Of each of its pieces how many bytes it has, and its ids.

    Raises `DataError`, which says where, for a text that cannot be encoded or read.
    """
    start = span.start
    for stop in cuts(span):
        text = _read(span, start, stop)
        try:
            ids = tokenizer.encode(text).astype(dtype)
        except DataError as error:
            where = span.text.path if isinstance(span.text, File) else name
            raise DataError(f"{where}{f' from byte {start} on' * (start > 0)}: {error}") from None
        yield stop - start, ids
        start = stop


def dtype_of(tokenizer: Tokenizer) -> np.dtype:
    """The smallest type that holds its ids."""
    return np.min_scalar_type(tokenizer.num_tokens - 1)


def digest_of_ids(text: str, tokenizer: Tokenizer) -> str:
    """The digest of an encoded text, of that of the text: whether its ids lie in memory or in shards."""
    return text if isinstance(tokenizer, ByteTokenizer) else sha256(f"{text}/{tokenizer.digest}".encode())


def _read(span: Span, start: int, stop: int) -> bytes:
    size = size_of(span.text)
    found = read_part(span.text, min(start, size), min(stop, size)).tobytes()
    return found + b"\n" if span.is_followed and stop > size else found


def _end_of_piece(read: Read, start: int, size: int) -> int:
    least, most = start + PIECE, start + MOST_PIECES * PIECE
    if least >= size:
        return size
    line = _find(read, b"\n", least, min(least + PIECE, size))
    if line >= 0:
        return line + 1
    word = _find(read, b" ", least, min(most, size))
    if word >= 0:
        return word
    if most >= size:
        return size
    # A byte 10xxxxxx goes on with a character of UTF-8, which has at most four bytes.
    before = read(most - 3, most + 1)
    return next((most - 3 + i for i in (3, 2, 1, 0) if before[i] & 0xC0 != 0x80), most)


def _find(read: Read, byte: bytes, start: int, stop: int) -> int:
    """The first place of a byte in a part of a text, -1 if there is none."""
    for at in range(start, stop, _CHUNK):
        found = read(at, min(at + _CHUNK, stop)).find(byte)
        if found >= 0:
            return at + found
    return -1
