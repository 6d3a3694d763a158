"""Files on disk: waiting until they are written, and replacing a folder by one rename."""

from __future__ import annotations

import os
from pathlib import Path


def fsync(path: Path) -> None:
    """Wait until the file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(folder: Path, path: Path, old: Path) -> None:
    """Give a finished folder the name `path`; what had it is called `old` then, or keeps it if that fails."""
    if not os.path.lexists(path):
        folder.rename(path)
        return
    path.rename(old)
    try:
        folder.rename(path)
    except BaseException:
        old.rename(path)
        raise


def what_lacks(path: Path, name: str, error: OSError) -> str:
    """`path`, and why there is no file `name` in it to read, in the words of an error message."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        if path.is_dir():
            return f"{path}, a folder without {name}"
        if path.is_file():
            return f"{path}, a file"
    return f"{path}: {error.strerror}"
