"""The files of a corpus: found, opened, read in part, and hashed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from palm.errors import DataError
from palm.files.arrays import read_layout
from palm.files.objects import MalformedError
from palm.files.read import open_regular


class File(NamedTuple):
    """A file as it was when the corpus was opened: `size` numbers of `dtype`, after `offset` other bytes.

    They are promised to be less than `below`, if that is not 0.
    It is not mapped: what is cut off under a mapping kills the process that reads it.
    """

    path: Path
    bytes: int
    changed: int
    size: int
    dtype: np.dtype[Any] = np.dtype(np.uint8)
    offset: int = 0
    below: int = 0


Part = np.ndarray | File
_THREADS = min(8, os.cpu_count() or 1)
# Windows alone has text files, and it alone lacks a way not to wait for the writer of a pipe.
_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder, by relative path, but for what is hidden: names with a leading dot."""

    def refuse(error: OSError) -> None:
        raise unreadable(error.filename, error)

    found = []
    for inside, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(inside, name) for name in files if not name.startswith(".")]
    return sorted(filter(os.path.isfile, found), key=lambda file: file.relative_to(folder).as_posix())


def open_file(path: Path) -> File:
    """The file as it is now. Raises `DataError` if it cannot be read."""
    try:
        with open_regular(path) as stream:
            status = os.fstat(stream.fileno())
    except OSError as error:
        raise unreadable(path, error) from None
    return File(path, status.st_size, status.st_mtime_ns, status.st_size)


def open_ids(path: Path) -> tuple[File, np.ndarray]:
    """The numbers of a `.npy` file as it is now; and an array of their dtype and shape, without memory.

    Raises `DataError` if it cannot be read, or is not what NumPy writes.
    """
    try:
        with open_regular(path) as stream:
            status = os.fstat(stream.fileno())
            layout = read_layout(stream, status.st_size)
    except OSError as error:
        raise unreadable(path, error) from None
    except MalformedError as error:
        raise refusal("a NumPy file of ids", path, f"{error}. Save it again.") from None
    ids = np.broadcast_to(np.zeros((), layout.dtype), layout.shape)
    return File(path, status.st_size, status.st_mtime_ns, ids.size, layout.dtype, layout.offset), ids


def size_of(part: Part) -> int:
    """How many bytes, or ids."""
    return part.size


def read_part(part: Part, start: int, stop: int) -> np.ndarray:
    """Its numbers start … stop - 1. Raises `DataError` if the file is gone or has changed since."""
    if not isinstance(part, File):
        return part[start:stop]
    width = part.dtype.itemsize
    try:
        descriptor = os.open(part.path, _READ)
        try:
            check_unchanged(part, descriptor)
            content = _read_at(descriptor, part.offset + start * width, (stop - start) * width)
            check_unchanged(part, descriptor)  # once more: while it was read
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unreadable(part.path, error) from None
    found = np.frombuffer(content, part.dtype)
    if part.below and len(found) and found.max() >= part.below:
        fix = "They are not what was written: restore another copy."
        raise refusal(f"ids below {part.below}", f"{found.max()} in {part.path}", fix)
    return found


def _read_at(descriptor: int, start: int, length: int) -> bytes:
    os.lseek(descriptor, start, os.SEEK_SET)
    pieces = []
    while length and (piece := os.read(descriptor, length)):
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def check_unchanged(file: File, descriptor: int) -> None:
    """Raise `DataError` unless the open file is what it was when the corpus was opened."""
    status = os.fstat(descriptor)
    if (status.st_size, status.st_mtime_ns) != (file.bytes, file.changed):
        raise refusal("left alone while it is read", file.path, "It has changed: open it again.")


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    try:
        with open_regular(path) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None


def hash_files(paths: Iterable[Path]) -> Iterator[str]:
    """SHA-256 of each of many files, several at a time."""
    with ThreadPoolExecutor(_THREADS) as pool:  # hashlib lets the others run
        yield from pool.map(hash_file, paths)


def hash_folder(digests: Mapping[str, str]) -> str:
    """SHA-256 of the names and the contents of the files of a folder; `digests` are those of the contents."""
    return sha256(b"\n".join(digest.encode() + b" " + os.fsencode(name) for name, digest in digests.items()))


def sha256(content: bytes) -> str:
    """SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def unreadable(path: str | os.PathLike[str], error: OSError) -> DataError:
    """The error for a file that the system does not let us read."""
    return DataError(f"data must be a readable file or folder; got data={path}: {error.strerror}.")


def refusal(what: str, data: object, fix: str) -> DataError:
    """The error for data that is not what it must be."""
    return DataError(f"data must be {what}; got data={data}. {fix}")
