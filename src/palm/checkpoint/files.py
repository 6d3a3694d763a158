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
