"""A corpus: the token ids of a text, a file, a folder or an array, read where they lie."""

from __future__ import annotations

import hashlib
import math
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from textwrap import shorten

import numpy as np

from palm.data.documents import Documents, Items
from palm.data.files import (
    File,
    Part,
    hash_file,
    hash_files,
    hash_folder,
    open_file,
    open_ids,
    read_part,
    refusal,
    sha256,
    size_of,
)
from palm.data.pieces import digest_of_ids, dtype_of, encode_span, spans_of
from palm.data.shards import is_shards, read_shards, texts_below
from palm.data.text import to_bytes
from palm.data.tokenizer import ByteTokenizer, Tokenizer
from palm.errors import DataError

# Ids are scanned in pieces of this many: that may not need a corpus twice over.
PIECE = 1 << 20
_NEWLINE = np.frombuffer(b"\n", np.uint8)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token ids start … stop - 1 of `parts` laid end to end; `open_corpus` makes one.

    `bytes_per_token` is how much text a token stands for: 1 for bytes, NaN for ids that came without text.
    `tokenizer` is the one that shards came with, and made the ids; None if they came with none.
    """

    name: str
    bytes_per_token: float
    parts: tuple[Part | Documents, ...]
    ends: tuple[int, ...]
    content: Callable[[], str]
    start: int
    stop: int
    tokenizer: Tokenizer | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def digest(self) -> str:
        """SHA-256 of what was opened, computed when first asked for; of a slice, with its [start:stop]."""
        whole = (self.start, self.stop) == (0, self.ends[-1])
        return self.content() + ("" if whole else f"[{self.start}:{self.stop}]")

    @property
    def largest_possible(self) -> int:
        """The largest id that may occur: what the data types allow, 255 for bytes; or what shards promise."""
        return max(_largest(part) for part in self.parts)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Ids start … stop - 1, int64. Raises `DataError` beyond the ends, or if a file has changed."""
        self._check(start, stop)
        ids = np.empty(stop - start, np.int64)
        at, filled = self.start + start, 0
        part = bisect_right(self.ends, at)
        while filled < len(ids):
            size = self.parts[part].size
            offset = at - (self.ends[part] - size)
            end = min(offset + len(ids) - filled, size)
            found = self.parts[part]
            piece = found[offset:end] if isinstance(found, Documents) else read_part(found, offset, end)
            ids[filled : filled + len(piece)] = piece
            at, filled, part = at + len(piece), filled + len(piece), part + 1
        return ids

    def pieces(self) -> Iterator[tuple[int, np.ndarray]]:
        """All ids in order, at most `PIECE` at a time, each with the position where it starts."""
        for start in range(0, len(self), PIECE):
            yield start, self.read(start, min(start + PIECE, len(self)))

    def slice(self, start: int, stop: int) -> Corpus:
        """Ids start … stop - 1 as a corpus of their own, without a copy. `DataError` beyond the ends."""
        self._check(start, stop)
        return replace(self, start=self.start + start, stop=self.start + stop)

    def place(self, at: int) -> str:
        """Where the id at that position is, in words: of documents, in which one."""
        part = bisect_right(self.ends, self.start + at)
        found = self.parts[part]
        offset = self.start + at - (self.ends[part] - found.size)
        return found.place(offset) if isinstance(found, Documents) else f"{at} of {self.name}"

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= len(self):
            raise DataError(
                f"start and stop must be in order and within {len(self)} tokens; got start={start}, "
                f"stop={stop}. Ask for a part that exists."
            )


Data = str | bytes | os.PathLike[str] | np.ndarray | Corpus | Items


def open_corpus(data: Data, tokenizer: Tokenizer | None = None, *, name: str | None = None) -> Corpus:
    """The tokens of a text (str or bytes), an array of ids, or what a `Path` names: file, folder, `.npy`.

    Or those of documents, laid end to end: of a list or any object with `__len__` and `__getitem__`, whose
    items are arrays of ids or have one as `input_ids`. An item is read when it is asked for.
    A folder is all its files by relative path, hidden ones left out, joined with newlines; or the shards that
    `palm data tokenize` made, which bring their tokenizer along and refuse another one. Of files only what is
    asked for is read. With a `tokenizer` text is encoded now, file by file, long ones in pieces of a megabyte
    cut at a line or word; ids stay as they are. Raises `DataError` for what is missing, unreadable, empty, or
    not ids.
    """
    if isinstance(data, Corpus):
        _check_own(data, tokenizer)
        return data
    if isinstance(data, str | bytes):
        if isinstance(data, str) and os.path.exists(data):
            raise refusal("a Path if it names a file", data, "A str is the text itself: pass Path(…).")
        text = to_bytes(data)
        return _of_texts(name or "text", [np.frombuffer(text, np.uint8)], lambda: sha256(text), tokenizer)
    if isinstance(data, np.ndarray):
        return _of_ids(data, name or "ids", lambda: _hash_ids(data))
    if isinstance(data, os.PathLike):
        return _of_path(data, name or str(data), tokenizer)
    if isinstance(data, Mapping) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        fix = "Pass one of these; of a DatasetDict one split."
        raise refusal("a Path, text, bytes, an array of ids, or documents of ids", type(data), fix)
    documents = Documents(data, name or "documents")
    return _corpus(name or "documents", math.nan, [documents], lambda: documents.digest)


def _of_path(data: os.PathLike[str], name: str, tokenizer: Tokenizer | None) -> Corpus:
    path = Path(data).absolute()
    try:
        is_folder = path.is_dir()
    except OSError as error:  # most likely a whole text
        shown = shorten(name, 60)
        raise refusal("a path", shown, f"{error.strerror}: if it is the text itself, pass bytes.") from None
    if is_folder:
        return _of_shards(path, name, tokenizer) if is_shards(path) else _of_folder(path, name, tokenizer)
    if os.path.exists(path) and not os.path.isfile(path):
        fix = "The path is neither a file nor a folder: save it as a file first."
        raise refusal("a file or a folder", data, fix)
    if path.suffix != ".npy":
        return _of_texts(name, [open_file(path)], lambda: hash_file(path), tokenizer)
    part, ids = open_ids(path)
    return _of_ids(ids, name, lambda: hash_file(path), part)


def _of_folder(path: Path, name: str, tokenizer: Tokenizer | None) -> Corpus:
    files = texts_below(path)

    def content() -> str:
        found = hash_files(file.path for file in files.values())
        return hash_folder(dict(zip(files, found, strict=True)))

    return _of_texts(name, list(files.values()), content, tokenizer)


def _of_shards(path: Path, name: str, tokenizer: Tokenizer | None) -> Corpus:
    found = read_shards(path)
    corpus = _corpus(name, found.bytes_per_token, found.files, found.digest)
    corpus = replace(corpus, tokenizer=found.tokenizer)
    _check_own(corpus, tokenizer)
    return corpus


def _check_own(corpus: Corpus, tokenizer: Tokenizer | None) -> None:
    """Raise `DataError` for another tokenizer than the one that made the ids, if that is known."""
    own = corpus.tokenizer
    if own is not None and tokenizer is not None and own.digest != tokenizer.digest:
        raise DataError(
            f"tokenizer must be the one that made the shards, {getattr(own, 'told', own.name)} of "
            f"{corpus.name}; got tokenizer={tokenizer.name}, which differs. Leave it out, or tokenize the "
            "text anew."
        )


def _of_ids(ids: np.ndarray, name: str, content: Callable[[], str], part: File | None = None) -> Corpus:
    """Ids in memory, or in the file `part`; then `ids` says only what they are."""
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids):
        found = f"{name} of {ids.dtype}{list(ids.shape)}"
        raise refusal("a 1-D array of integers, at least one", found, "Save the ids alone.")
    corpus = _corpus(name, math.nan, [ids if part is None else part], content)
    if ids.dtype.kind == "i" or ids.itemsize == 8:
        for start, piece in corpus.pieces():
            if piece.min() < 0:
                at = int(np.argmax(piece < 0))
                found = f"{piece[at]} at {start + at} of {name}"
                raise refusal("ids of at least 0", found, "Look where the ids were made.")
    return corpus


def _of_texts(
    name: str, texts: Sequence[Part], content: Callable[[], str], tokenizer: Tokenizer | None
) -> Corpus:
    """Texts joined with newlines: as bytes or, with a tokenizer, encoded one by one."""
    if not any(map(size_of, texts)):
        raise refusal("at least one byte long", name, "It is empty: use another file or folder.")
    parts = [part for text in texts for part in (text, _NEWLINE)][:-1]
    if tokenizer is None or isinstance(tokenizer, ByteTokenizer):
        return _corpus(name, 1.0, parts, content)
    dtype = dtype_of(tokenizer)
    ids = np.concatenate([ids for s in spans_of(texts) for _, ids in encode_span(s, tokenizer, dtype, name)])
    if not len(ids):
        raise refusal("at least one token long", name, "Use another text or tokenizer.")
    bytes_per_token = sum(map(size_of, parts)) / len(ids)
    return _corpus(name, bytes_per_token, [ids], lambda: digest_of_ids(content(), tokenizer))


def _corpus(
    name: str, bytes_per_token: float, parts: Sequence[Part | Documents], content: Callable[[], str]
) -> Corpus:
    parts = tuple(part for part in parts if part.size)
    ends = tuple(accumulate(part.size for part in parts))
    return Corpus(name, bytes_per_token, parts, ends, cache(content), 0, ends[-1])


def _largest(part: Part | Documents) -> int:
    below = 0 if isinstance(part, np.ndarray) else part.below
    return below - 1 if below else np.iinfo(part.dtype).max


def _hash_ids(ids: np.ndarray) -> str:
    found = hashlib.sha256()
    for start in range(0, len(ids), PIECE):
        found.update(ids[start : start + PIECE].astype("<i8").tobytes())
    return found.hexdigest()
