"""The files of a corpus: found, opened, mapped when they are read, and hashed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from palm.errors import DataError


class File(NamedTuple):
    """A file as it was when the corpus was opened; its bytes are mapped when they are read."""

    path: Path
    size: int
    changed: int


Part = np.ndarray | File


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder, by relative path, but for what is hidden: names with a leading dot."""

    def refuse(error: OSError) -> None:
        raise unreadable(error.filename, error)

    found = []
    for inside, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(inside, name) for name in files if not name.startswith(".")]
    return sorted(filter(Path.is_file, found), key=lambda file: file.relative_to(folder).as_posix())


def open_file(path: Path) -> File:
    """The file as it is now. Raises `DataError` if it cannot be read."""
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
    except OSError as error:
        raise unreadable(path, error) from None
    return File(path, status.st_size, status.st_mtime_ns)


def size_of(part: Part) -> int:
    """How many bytes, or ids."""
    return part.size


def array_of(part: Part) -> np.ndarray:
    """The bytes of a file, mapped, or the ids. Raises `DataError` if the file has changed since."""
    if not isinstance(part, File):
        return part
    try:
        status = os.stat(part.path)
    except OSError as error:
        raise unreadable(part.path, error) from None
    # Each time: what is cut off under a mapping kills the process that reads it.
    if (status.st_size, status.st_mtime_ns) != (part.size, part.changed):
        raise refusal("left alone while it is read", part.path, "It has changed: open it again.")
    return _mapped(part)


@lru_cache(maxsize=64)  # each mapping holds a file descriptor, and a folder may have thousands of files
def _mapped(file: File) -> np.ndarray:
    return np.memmap(file.path, np.uint8, "r")


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None


def hash_folder(folder: Path, files: Sequence[File]) -> str:
    """SHA-256 of the names and the contents of the files of a folder."""
    names = (os.fsencode(file.path.relative_to(folder).as_posix()) for file in files)
    lines = (hash_file(file.path).encode() + b" " + name for file, name in zip(files, names, strict=True))
    return sha256(b"\n".join(lines))


def sha256(content: bytes) -> str:
    """SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def unreadable(path: str | os.PathLike[str], error: OSError) -> DataError:
    """The error for a file that the system does not let us read."""
    return DataError(f"data must be a readable file or folder; got data={path}: {error.strerror}.")


def refusal(what: str, data: object, fix: str) -> DataError:
    """The error for data that is not what it must be."""
    return DataError(f"data must be {what}; got data={data}. {fix}")
