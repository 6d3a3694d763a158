"""Temporary folders, each removed with its process: what a killed one left, the next one removes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

# Every folder's name begins so, and has a file that is locked as long as the folder's process lives.
_PREFIX, _LOCK = "palm-", ".palm-lock"


@contextmanager
def temporary_folder(what: str) -> Iterator[Path]:
    """A folder for `what`, which is removed at the end; first, those of processes that were killed."""
    parent = Path(tempfile.gettempdir())
    _remove_abandoned(parent)
    folder, lock = _made(what)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _made(what: str) -> tuple[Path, FileLock]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{what}-"))
        lock = FileLock(folder / _LOCK)
        lock.acquire()
        if (folder / _LOCK).exists():
            return folder, lock
        lock.release()  # another process took it for abandoned, in the moment before it was locked


def _remove_abandoned(parent: Path) -> None:
    for lock in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        folder = lock.parent
        try:
            if folder.is_symlink() or (hasattr(os, "getuid") and folder.lstat().st_uid != os.getuid()):
                continue
            with FileLock(lock, blocking=False):
                shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, OSError):  # it is in use, or somebody else removes it
            continue
