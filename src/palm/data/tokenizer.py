"""Text to ids and back: the bytes themselves, or the tokenizer of a file or of another package."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from palm.data.text import UNKNOWN, to_bytes
from palm.data.tokenizer_file import FileTokenizer, export_tokenizer, read_tokenizer_file
from palm.errors import ConfigError, DataError


class Stream(Protocol):
    """Ids one by one to text: what is fed and finished, joined, is what `decode` gives for all of them."""

    def feed(self, token: int, /) -> str:
        """The characters that this id completes; often one, sometimes none."""

    def finish(self) -> str:
        """What is left; U+FFFD for a character that was never completed."""


@runtime_checkable
class Tokenizer(Protocol):
    """What every tokenizer here can do. `digest` tells two of them apart: SHA-256 of the file, or "bytes"."""

    @property
    def name(self) -> str:
        """The file's name, or "bytes"."""

    @property
    def digest(self) -> str:
        """SHA-256 of the file, or "bytes"."""

    @property
    def num_tokens(self) -> int:
        """One more than the largest id."""

    def encode(self, text: str | bytes, /) -> np.ndarray:
        """The ids of a text, int64, with no special tokens added. `DataError` if it is not UTF-8."""

    def decode(self, ids: Iterable[int], /) -> str:
        """The text of ids; one that no token has, as a larger model may draw, is U+FFFD. Never raises."""

    def stream(self) -> Stream:
        """A decoder for ids that come one by one."""


class ByteTokenizer:
    """Text as the bytes of its UTF-8: 256 tokens, nothing to train, nothing it cannot say."""

    name = "bytes"
    digest = "bytes"
    num_tokens = 256

    def encode(self, text: str | bytes) -> np.ndarray:
        """The bytes of a text as int64 ids; bytes are taken as they are."""
        return np.frombuffer(to_bytes(text), np.uint8).astype(np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are no UTF-8, and ids that are no bytes, are U+FFFD."""
        stream = self.stream()
        return "".join(map(stream.feed, ids)) + stream.finish()

    def stream(self) -> Stream:
        """A decoder for ids that come one by one."""
        return _ByteStream()


class _ByteStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        if 0 <= token < ByteTokenizer.num_tokens:
            return self._decoder.decode(bytes([token]))
        return self.finish() + UNKNOWN

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


def default_tokenizer(num_tokens: int) -> ByteTokenizer | None:
    """The tokenizer of a model of which nothing else is known: bytes for a vocabulary of 256, else none."""
    return ByteTokenizer() if num_tokens == ByteTokenizer.num_tokens else None


def vocabulary_size(tokenizer: Tokenizer, num_tokens: int | None = None) -> int:
    """The `num_tokens` of a model for `tokenizer`: as given, and the tokenizer's own by default.

    Raises `ConfigError` if the model would lack some of the tokenizer's ids.
    """
    if num_tokens is None:
        return tokenizer.num_tokens
    if num_tokens < tokenizer.num_tokens and not isinstance(tokenizer, ByteTokenizer):
        told = getattr(tokenizer, "told", tokenizer.name)
        raise ConfigError(
            f"num_tokens must be at least {tokenizer.num_tokens}, the vocabulary of tokenizer={told}; got "
            f"num_tokens={num_tokens}. Use num_tokens={tokenizer.num_tokens}."
        )
    return num_tokens


def load_tokenizer(tokenizer: Any) -> Tokenizer:
    """What `tokenizer=` means everywhere in palm.

    A path to a `.json` file of Hugging Face or a `.model` file of SentencePiece; a tokenizer object: of the
    package `tokenizers`, a fast one of `transformers`, a `SentencePieceProcessor`, or one of palm's own
    (`Tokenizer`); None or "bytes" for bytes.

    Raises `DataError` for anything else and for a file that cannot be read, and `MissingFrameworkError` if
    the package that reads it is not installed.
    """
    if tokenizer is None or (isinstance(tokenizer, str) and tokenizer == ByteTokenizer.name):
        return ByteTokenizer()
    found: Any = tokenizer
    if isinstance(tokenizer, (str, os.PathLike)):
        found = read_tokenizer_file(tokenizer)
    elif not isinstance(tokenizer, (FileTokenizer, Tokenizer)):
        found = export_tokenizer(tokenizer)
    if found is None:
        kind = type(tokenizer)
        raise DataError(
            "tokenizer must be a path, a tokenizers.Tokenizer, a fast tokenizer of transformers, a "
            f"SentencePieceProcessor, or one of palm's own; got tokenizer={kind.__module__}."
            f"{kind.__qualname__}. Save it as tokenizer.json or tokenizer.model and pass the path."
        )
    if isinstance(found, FileTokenizer):
        found.parse()
    return found
