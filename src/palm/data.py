"""Text for the instrument: bytes of a file, or of what every CPython carries."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import numpy as np

from palm.config import PaLMConfig
from palm.errors import DataError
from palm.rng import generator

BYTES = 256


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


def read_text(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file. Raises `DataError` if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"data must be a readable file; got data={path}: {error.strerror}.") from None


def sample_windows(text: bytes, config: PaLMConfig, *, batch: int, length: int, seed: int) -> np.ndarray:
    """`batch` windows of `length` byte tokens at places that `seed` draws. Shape (batch, length), int64.

    Raises `DataError` if the text is shorter than one window or has bytes the vocabulary lacks, or if the
    window is too short to have a next token.
    """
    for name, value, least in (("batch", batch, 1), ("length", length, 2)):
        if value < least:
            raise DataError(f"{name} must be at least {least}; got {name}={value}. Use a larger one.")
    if len(text) < length:
        raise DataError(
            f"data must be at least one window long; got {len(text)} bytes for length={length}. "
            "Use a longer text or a smaller --length."
        )
    corpus = np.frombuffer(text, np.uint8)
    if config.num_tokens < BYTES and (largest := int(corpus.max())) >= config.num_tokens:
        raise DataError(
            f"data must be bytes below num_tokens={config.num_tokens}; got byte {largest}. "
            "Use a model of 256 tokens, or other text."
        )
    starts = generator(seed, "windows").integers(0, len(corpus) - length + 1, size=batch)
    return np.stack([corpus[start : start + length] for start in starts]).astype(np.int64)
