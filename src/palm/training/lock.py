"""One writer in a run's folder: a lock that ends with the process, however that ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from palm.errors import RunError

# The lock's file. It stays when the lock is released: whoever waits must wait for the same file.
LOCK = ".lock"


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other processes, and other threads, from writing to the folder of a run.

    Raises `RunError` if one of them does already, or if the folder is missing or cannot be written.
    """
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        next(folder.iterdir(), None)  # a missing folder is an error, and is not made for the lock
        lock.acquire()
    except Timeout:
        raise RunError(
            f"run must have one writer; got run={folder}, where another process trains. Wait for it."
        ) from None
    except OSError as error:
        raise RunError(f"run must be a writable folder; got run={folder}: {error.strerror}.") from None
    try:
        yield
    finally:
        lock.release()
