"""A tokenizer in a file of Hugging Face (`.json`) or SentencePiece (`.model`), read by its own package."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from palm.data.charsmap import check_charsmap
from palm.data.text import UNKNOWN, to_str
from palm.errors import DataError, MissingFrameworkError
from palm.files.read import read_file

_MOST_BYTES = 1 << 30


class _Reading(NamedTuple):
    num_tokens: int
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]


class FileTokenizer:
    """A tokenizer and the content of its file, which a run and its checkpoints keep.

    The content is parsed when it is first needed: a model is loaded, saved and used on ids without the
    package. Raises `DataError` then for a file that the package cannot read, and `MissingFrameworkError` if
    the package is not installed.
    """

    def __init__(self, source: str | os.PathLike[str], content: bytes, told: str = "") -> None:
        self._source, self.content = Path(source), content
        _check_kind(self._source)
        self.name = self._source.name
        self.told = told or self.name  # in messages: what the user gave, which may be an object
        self.digest = hashlib.sha256(content).hexdigest()
        self.file = f"tokenizer{self._source.suffix}"

    @property
    def num_tokens(self) -> int:
        """One more than the largest id."""
        return self._reading.num_tokens

    def encode(self, text: str | bytes) -> np.ndarray:
        """The ids of a text, int64, with no special tokens added. `DataError` if the file has none for it."""
        reading, whole = self._reading, to_str(text)
        with self._refusing():
            return np.array(reading.encode(whole), np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; one that no token has is U+FFFD."""
        runs = groupby(map(int, ids), lambda token: 0 <= token < self.num_tokens)
        reading = self._reading
        with self._refusing():
            return "".join(reading.decode([*run]) if known else UNKNOWN * len([*run]) for known, run in runs)

    def stream(self) -> _FileStream:
        """A decoder for ids that come one by one."""
        return _FileStream(self)

    def parse(self) -> None:
        """Raise now what `encode` would raise later."""
        _ = self._reading

    @cached_property
    def _reading(self) -> _Reading:
        package, _, read = _READERS[self._source.suffix]
        try:
            module = import_module(package)
        except ImportError:
            raise MissingFrameworkError(
                f'tokenizer="{self._source}" needs {package}; it is not installed. '
                'Run: pip install "palm-dual[tokenizers]".'
            ) from None
        with self._refusing():
            return read(module, self.content)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn whatever a package makes of a damaged file into a `DataError`."""
        package, kind, _ = _READERS[self._source.suffix]
        try:
            yield
        except BaseException as error:  # each package has its own, down to a bare RuntimeError
            # A panic of Rust derives from BaseException, and has no class that could be imported.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise DataError(
                f"tokenizer must be a file that {package} can read, {kind}; got tokenizer={self._source}: "
                f"{error}. Get another copy, or another version of the package."
            ) from None


class _FileStream:
    """Decodes the last ids that gave text together with those since: a token's text may depend on the one
    before it (the space that a word starts with), and a character may take several tokens."""

    def __init__(self, tokenizer: FileTokenizer) -> None:
        self._tokenizer = tokenizer
        self._said: list[int] = []
        self._since: list[int] = []

    def feed(self, token: int) -> str:
        """The characters that this id completes."""
        self._since.append(token)
        text = self.finish()
        if not text or text.endswith(UNKNOWN):
            return ""
        # A decoded text loses its leading spaces: ids that show something must stay ahead of those to come.
        shown = self._tokenizer.decode(self._since).strip()
        self._said, self._since = ([] if shown else self._said) + self._since, []
        return text

    def finish(self) -> str:
        """What is left."""
        before = self._tokenizer.decode(self._said)
        return self._tokenizer.decode(self._said + self._since)[len(before) :]


def read_tokenizer_file(path: str | os.PathLike[str]) -> FileTokenizer:
    """The tokenizer in a file, not parsed yet. Raises `DataError` for one missing or of another kind."""
    _check_kind(Path(path))
    try:
        return FileTokenizer(path, read_file(path, _MOST_BYTES))
    except OSError as error:
        raise DataError(
            f"tokenizer must be a readable file; got tokenizer={path}: {error.strerror}."
        ) from None


def _check_kind(file: Path) -> None:
    if file.suffix not in _READERS:
        raise DataError(
            f"tokenizer must be a .json file of Hugging Face or a .model file of SentencePiece; got "
            f"tokenizer={file}. Convert it, or leave it out to work on bytes."
        )


def export_tokenizer(tokenizer: Any) -> FileTokenizer | None:
    """A tokenizer object of another package as its file; None if it is none that has one.

    That is a `tokenizers.Tokenizer`, a fast tokenizer of transformers (which wraps one), or a
    `sentencepiece.SentencePieceProcessor`.
    """
    told = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
    wrapped = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if callable(getattr(wrapped, "to_str", None)):
        return FileTokenizer("tokenizer.json", wrapped.to_str().encode(), told)
    if callable(getattr(tokenizer, "serialized_model_proto", None)):
        return FileTokenizer("tokenizer.model", tokenizer.serialized_model_proto(), told)
    return None


def _hugging_face(module: ModuleType, content: bytes) -> _Reading:
    _check_charsmaps(json.loads(content).get("normalizer"))
    found: Any = module.Tokenizer.from_buffer(content)
    # A file may say that every text is to be cut, or filled, to one length.
    found.no_truncation()
    found.no_padding()
    return _Reading(
        max(found.get_vocab(with_added_tokens=True).values()) + 1,
        lambda text: found.encode(text, add_special_tokens=False).ids,
        lambda ids: found.decode(ids, skip_special_tokens=False),
    )


def _check_charsmaps(normalizer: Any) -> None:
    """Raise `ValueError` for a table of characters that the package would panic over."""
    for inner in [normalizer, *(normalizer or {}).get("normalizers", ())]:
        if inner and inner.get("type") == "Precompiled":
            check_charsmap(base64.b64decode(inner["precompiled_charsmap"], validate=True))


def _sentencepiece(module: ModuleType, content: bytes) -> _Reading:
    if not content:
        raise ValueError("it is empty")
    found: Any = module.SentencePieceProcessor(model_proto=content)
    return _Reading(found.get_piece_size(), found.encode, found.decode)


_READERS = {
    ".json": ("tokenizers", "a tokenizer.json of Hugging Face tokenizers", _hugging_face),
    ".model": ("sentencepiece", "a model of SentencePiece", _sentencepiece),
}
# What a tokenizer's file is called where palm keeps one.
FILES = tuple(f"tokenizer{suffix}" for suffix in _READERS)
