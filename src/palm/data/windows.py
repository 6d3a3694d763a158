"""Text that is at hand, and the windows of a corpus: the order training sees them in, and validation's."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from palm.data.corpus import Corpus, Data, open_corpus
from palm.errors import DataError
from palm.memory import check_fits
from palm.spec.random import generator

__all__ = [
    "Batch",
    "Corpus",
    "Data",
    "batch_of",
    "check_vocabulary",
    "open_corpus",
    "python_documentation_text",
    "sample_windows",
    "split",
    "standard_library_text",
    "validation_windows",
    "windows",
]

# Four rounds of a Feistel network make a good permutation of a large set; tiny ones need more.
_ROUNDS = 8


def standard_library_text() -> bytes:
    """Python's own standard library: the sources and documentation strings of its top-level modules.

    The same bytes for the same Python build. Raises `DataError` where the library has no source files.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    # What starts with an underscore may be written by the build, or by who packaged it.
    sources = sorted(folder.glob("[a-z]*.py"), key=lambda path: path.name)
    if not sources:
        raise DataError(
            f"the standard library must have sources; got none in {folder}. Pass a text with --data."
        )
    return b"\n".join(path.read_bytes() for path in sources)


def python_documentation_text() -> bytes:
    """The chapters of Python's documentation that `help()` shows: English prose, half a megabyte.

    The same bytes for the same Python version. Raises `DataError` where Python came without them.
    """
    try:
        from pydoc_data.topics import topics  # noqa: PLC0415 - large, and nothing else needs it
    except ImportError:
        raise DataError(
            "Python must include pydoc_data.topics, its documentation; it does not. Pass a text with --data."
        ) from None
    return "\n".join(topics[name] for name in sorted(topics)).encode()


def check_vocabulary(corpus: Corpus, num_tokens: int) -> None:
    """Raise `DataError`, naming the first such id and its position, unless all ids are below `num_tokens`."""
    if corpus.largest_possible < num_tokens:
        return
    for start, piece in corpus.pieces():
        if piece.max() >= num_tokens:
            at = int(np.argmax(piece >= num_tokens))
            raise DataError(
                f"data must be ids below num_tokens={num_tokens}; got id {piece[at]} at "
                f"{corpus.place(start + at)}. Use a model of more tokens (256 for bytes), or other data."
            )


def split(corpus: Corpus, validation: float) -> tuple[Corpus, Corpus | None]:
    """The corpus without its last share, for training, and that share; None for a share of 0.

    Raises `DataError` for a share outside [0, 1), or one that leaves either part without a token.
    """
    if not 0 <= validation < 1:
        raise DataError(
            f"validation must be a share in [0, 1); got validation={validation}. 0.1 sets a tenth apart."
        )
    if validation == 0:
        return corpus, None
    size = round(len(corpus) * validation)
    if not 0 < size < len(corpus):
        raise DataError(
            "validation must leave at least one token for training and one for validation; got "
            f"validation={validation} of {len(corpus)} tokens. Use a longer text or another share."
        )
    return corpus.slice(0, len(corpus) - size), corpus.slice(len(corpus) - size, len(corpus))


@dataclass(frozen=True)
class Batch:
    """Windows of a corpus, each of which is read when it is asked for: `batch[2:4]`, `batch[:]`."""

    corpus: Corpus
    starts: tuple[int, ...]
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """How many windows there are, and how many ids each has."""
        return len(self.starts), self.width

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Shape (…, width), int64. Raises `DataError` if a file has changed."""
        return np.stack([self.corpus.read(start, start + self.width) for start in self.starts[rows]])


def windows(corpus: Corpus, *, seed: int, first: int, rows: int, length: int) -> np.ndarray:
    """All of `batch_of`, read. Shape (rows, length + 1), int64."""
    return batch_of(corpus, seed=seed, first=first, rows=rows, length=length)[:]


def batch_of(corpus: Corpus, *, seed: int, first: int, rows: int, length: int) -> Batch:
    """Windows number `first` … `first + rows - 1` of an endless sequence, of length + 1 ids.

    A window depends on (corpus, seed, its number, length) alone: on no state, no batch size, no process. In
    an epoch of

        m = max(1, (len(corpus) - 1) // length - 1)

    windows, neighbours overlap by one token, so that none is predicted twice; where the first one starts,
    and the order in which they are seen, are drawn anew for each epoch. Raises `DataError` if the corpus is
    shorter than one window.
    """
    for name, value, least in (("first", first, 0), ("rows", rows, 1), ("length", length, 1)):
        _check_least(name, value, least)
    _check_length(corpus, length + 1)
    m = max(1, (len(corpus) - 1) // length - 1)
    found = []
    for epoch in range(first // m, (first + rows - 1) // m + 1):
        # Raw numbers are the same in every version of NumPy.
        shift, *keys = map(int, generator(seed, f"data/epoch/{epoch}").bit_generator.random_raw(1 + _ROUNDS))
        phase = shift % (len(corpus) - m * length)
        seen = np.arange(max(first - epoch * m, 0), min(first + rows - epoch * m, m), dtype=np.uint64)
        found += [phase + int(index) * length for index in _permute(seen, m, keys)]
    return Batch(corpus, tuple(found), length + 1)


def validation_windows(corpus: Corpus, *, length: int, limit: int) -> np.ndarray:
    """Windows that predict no token twice, at most `limit`, spread evenly. Shape (m, length + 1), int64.

    The first one starts at the first token. Raises `DataError` if the corpus is shorter than one window.
    """
    for name, value in (("length", length), ("limit", limit)):
        _check_least(name, value, 1)
    _check_length(corpus, length + 1)
    there = (len(corpus) - 1) // length
    chosen = [index * there // limit for index in range(limit)] if limit < there else range(there)
    return np.stack([corpus.read(index * length, (index + 1) * length + 1) for index in chosen])


def sample_windows(
    text: bytes | Corpus,
    num_tokens: int,
    *,
    batch: int,
    length: int,
    seed: int,
) -> np.ndarray:
    """`batch` windows of `length` tokens at places that `seed` draws. Shape (batch, length), int64.

    Raises `DataError` if the text is shorter than one window or has ids the vocabulary lacks, or if the
    window is too short to have a next token.
    """
    _check_least("batch", batch, 1)
    _check_least("length", length, 2)
    check_fits(f"{batch:,} × {length:,} tokens", 8 * batch * length, "Use a smaller batch or length.")
    corpus = open_corpus(text)
    _check_length(corpus, length)
    check_vocabulary(corpus, num_tokens)
    starts = generator(seed, "windows").integers(0, len(corpus) - length + 1, size=batch)
    return np.stack([corpus.read(start, start + length) for start in starts.tolist()])


def _check_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise DataError(f"{name} must be at least {least}; got {name}={value}. Use a larger one.")


def _check_length(corpus: Corpus, window: int) -> None:
    if len(corpus) < window:
        raise DataError(
            f"data must be at least one window long; got {len(corpus)} tokens of {corpus.name} for a window "
            f"of {window}. Use a longer text or a smaller length."
        )


def _permute(index: np.ndarray, m: int, keys: list[int]) -> np.ndarray:
    """Where a pseudo-random permutation of 0 … m - 1 takes each index, one by one: nothing is shuffled.

    A Feistel network permutes the 4^half ≥ m numbers of 2·half bits; what lands at m or beyond goes through
    it again until it lands below (Black & Rogaway, 2002).
    """
    half = np.uint64(max(1, ((m - 1).bit_length() + 1) // 2))
    index = _feistel(index, half, keys)
    while (outside := index >= m).any():
        index[outside] = _feistel(index[outside], half, keys)
    return index


def _feistel(index: np.ndarray, half: np.uint64, keys: list[int]) -> np.ndarray:
    left, right = index >> half, index & ((np.uint64(1) << half) - np.uint64(1))
    for key in keys:
        left, right = right, left ^ (_mix(right ^ np.uint64(key)) >> (np.uint64(64) - half))
    return (left << half) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's mixer: every bit of the result depends on every bit of x (Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
