"""Text to ids and back: the bytes themselves, or a tokenizer file of Hugging Face or SentencePiece."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Callable, Iterable
from importlib import import_module
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from palm.errors import DataError, MissingFrameworkError

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class Stream(Protocol):
    """Ids one by one to text: what is fed and finished, joined, is what `decode` gives for all of them."""

    def feed(self, token: int, /) -> str:
        """The characters that this id completes; often one, sometimes none."""

    def finish(self) -> str:
        """What is left; U+FFFD for a character that was never completed."""


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


class _FileTokenizer:
    """A tokenizer read from a file: two functions of its package and what all of them share."""

    def __init__(
        self,
        file: Path,
        digest: str,
        num_tokens: int,
        encode: Callable[[str], list[int]],
        decode: Callable[[list[int]], str],
    ) -> None:
        self.name, self.digest, self.num_tokens = file.name, digest, num_tokens
        self._encode, self._decode = encode, decode

    def encode(self, text: str | bytes) -> np.ndarray:
        return np.array(self._encode(_to_str(text)), np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        runs = groupby(map(int, ids), lambda token: 0 <= token < self.num_tokens)
        return "".join(self._decode([*run]) if known else UNKNOWN * len([*run]) for known, run in runs)

    def stream(self) -> Stream:
        return _FileStream(self)


class _FileStream:
    """Decodes the last ids that gave text together with those since: a token's text may depend on the one
    before it (the space that a word starts with), and a character may take several tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._said: list[int] = []
        self._since: list[int] = []

    def feed(self, token: int) -> str:
        self._since.append(token)
        text = self.finish()
        if not text or text.endswith(UNKNOWN):
            return ""
        # A decoded text loses its leading spaces: ids that show something must stay ahead of those to come.
        shown = self._tokenizer.decode(self._since).strip()
        self._said, self._since = ([] if shown else self._said) + self._since, []
        return text

    def finish(self) -> str:
        before = self._tokenizer.decode(self._said)
        return self._tokenizer.decode(self._said + self._since)[len(before) :]


def load_tokenizer(path: str | os.PathLike[str] | None) -> Tokenizer:
    """The tokenizer in a file: `.json` of Hugging Face, `.model` of SentencePiece; for None, bytes.

    Raises `DataError` for a file that is neither, or cannot be read, and `MissingFrameworkError` if the
    package that reads it is not installed.
    """
    if path is None:
        return ByteTokenizer()
    file = Path(path)
    if file.suffix not in _READERS:
        raise DataError(
            f"tokenizer must be a .json file of Hugging Face or a .model file of SentencePiece; got "
            f"tokenizer={file}. Convert it, or leave it out to work on bytes."
        )
    package, read = _READERS[file.suffix]
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"tokenizer must be a readable file; got tokenizer={file}: {error.strerror}."
        ) from None
    try:
        module = import_module(package)
    except ImportError:
        raise MissingFrameworkError(
            f'tokenizer="{file}" needs {package}; it is not installed. '
            'Run: pip install "palm-dual[tokenizers]".'
        ) from None
    try:
        return _FileTokenizer(file, hashlib.sha256(content).hexdigest(), *read(module, content))
    except Exception as error:  # each package has its own, down to a bare RuntimeError
        raise DataError(
            f"tokenizer must be a file that {package} can read; got tokenizer={file}: {error}. "
            "Get another copy, or another version of the package."
        ) from None


_Parts = tuple[int, Callable[[str], list[int]], Callable[[list[int]], str]]


def _hugging_face(module: ModuleType, content: bytes) -> _Parts:
    found: Any = module.Tokenizer.from_buffer(content)
    # A file may say that every text is to be cut, or filled, to one length.
    found.no_truncation()
    found.no_padding()
    return (
        max(found.get_vocab(with_added_tokens=True).values()) + 1,
        lambda text: found.encode(text, add_special_tokens=False).ids,
        lambda ids: found.decode(ids, skip_special_tokens=False),
    )


def _sentencepiece(module: ModuleType, content: bytes) -> _Parts:
    if not content:
        raise ValueError("it is empty")
    found: Any = module.SentencePieceProcessor(model_proto=content)
    return found.get_piece_size(), found.encode, found.decode


_READERS = {".json": ("tokenizers", _hugging_face), ".model": ("sentencepiece", _sentencepiece)}


def to_bytes(text: str | bytes) -> bytes:
    """A text in UTF-8; bytes as they are. Raises `DataError` for half a surrogate pair."""
    try:
        return text if isinstance(text, bytes) else text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"text must be Unicode; got a lone surrogate at character {error.start}. Pass bytes instead."
        ) from None


def _to_str(text: str | bytes) -> str:
    try:
        return to_bytes(text).decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"text must be UTF-8 for this tokenizer; got byte {error.object[error.start]} at {error.start}. "
            "Convert the text, or work on bytes with no tokenizer."
        ) from None
