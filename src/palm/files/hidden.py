"""The hidden names of what is not, or no longer, in place: made, recognised, recovered and removed.

NAME is written as `.NAME.tmp-…` beside it; where the system cannot exchange two names in one step, what NAME
was steps aside as `.NAME.old-…` for a moment (palm.files.write). A process that is killed leaves such a name.
`recover` brings back what stepped aside, `clear` deletes the rest. Both touch only names of this form whose
writer has ended: a writer holds a lock on what it writes, which ends with the process.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nobody can tell there whether a writer has ended, and nothing is cleared away
    fcntl = None  # type: ignore[assignment]

# Of a name's 255 bytes, those that its hidden siblings may spend on it.
_LONGEST = 200


def hidden_name(path: Path, kind: str = "tmp") -> Path:
    """A name beside `path` that no other process, thread or host can have."""
    return path.with_name(f"{_prefix(path, kind)}{secrets.token_hex(8)}")


def _prefix(path: Path, kind: str) -> str:
    name = os.fsencode(path.name)
    if len(name) > _LONGEST:
        digest = hashlib.sha256(name).hexdigest()[:16]
        name = name[: _LONGEST - len(digest)] + digest.encode()
    return f".{os.fsdecode(name)}.{kind}-"


def _siblings(path: Path, kind: str) -> list[Path]:
    """What has a hidden name of `path`."""
    hidden = re.compile(re.escape(_prefix(path, kind)) + "[0-9a-f]{16}")
    try:
        return [entry for entry in path.parent.iterdir() if hidden.fullmatch(entry.name)]
    except (OSError, ValueError):  # there is no such folder, or it cannot be a folder's name
        return []


@contextmanager
def claimed(path: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """A hidden sibling of `path` that `make` makes, locked; whatever has its name at the end is removed."""
    with ExitStack() as stack:
        yield _made_and_held(path, make, stack)


def _made_and_held(path: Path, make: Callable[[Path], object], stack: ExitStack) -> Path:
    while True:
        hidden = hidden_name(path)
        make(hidden)
        stack.callback(remove, hidden)
        with suppress(FileNotFoundError):
            stack.enter_context(held(hidden))
        if os.path.lexists(hidden):  # or it was taken for abandoned before it was locked
            return hidden


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Show that somebody writes the file or folder; others may do so too. A link has no lock."""
    if fcntl is None or path.is_symlink():
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(
            OSError
        ):  # not every file system has locks: what is on one is never taken for abandoned
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _abandoned(path: Path) -> Iterator[bool]:
    """Whether it is a file or folder whose writer has ended, and that nobody takes up meanwhile."""
    if fcntl is None or path.is_symlink():
        yield False
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield False
        return
    try:
        yield _lock_alone(descriptor)
    finally:
        os.close(descriptor)


def _lock_alone(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove(path: Path) -> None:
    """Delete a folder or a file, as far as that is possible; of a link only the link."""
    if path.is_symlink() or not path.is_dir():
        with suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def delete(path: Path) -> None:
    """`remove` what has the name before its first file goes, so that it is never half of what it was.

    Raises `OSError` if it cannot lose its name.
    """
    hidden = hidden_name(path)
    path.rename(hidden)
    remove(hidden)


def recover(path: Path) -> None:
    """If nothing has the name `path`, give it back to what stepped aside for a process that was killed."""
    if os.path.lexists(path):
        return
    for old in _siblings(path, "old"):
        with _abandoned(old) as is_free:
            if is_free or old.is_symlink():
                with suppress(OSError):
                    old.rename(path)
                return


def clear(path: Path) -> None:
    """Delete what processes that were killed left beside `path`; never a link, nor what is still written."""
    for kind in ("tmp", "old") if os.path.lexists(path) else ("tmp",):
        for left in _siblings(path, kind):
            with _abandoned(left) as is_free:
                if is_free:
                    remove(left)
