"""The one way to write: a hidden sibling, the disk waited for, and then the name, in one step.

What has a name is the old or the new as a whole, at any moment, whatever happens. `palm.files.hidden` says
what a killed process leaves beside it, and how that is recovered or removed. The modes are the umask's.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from palm.files.hidden import claimed, clear, held, recover

_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux
_CANNOT_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM}
_NEW = os.O_WRONLY | os.O_CREAT
_WINDOW, _SMALL = 1 << 26, 1 << 16  # bytes


def fsync(path: Path) -> None:
    """Wait until the file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(file: Path, content: bytes) -> None:
    """Write a file in a `new_folder`, which has no name yet. Raises `OSError`."""
    with opened(file) as write:
        write(content)


@contextmanager
def opened(file: Path) -> Iterator[Callable[[bytes | memoryview], None]]:
    """`write_file` in parts: what writes the next bytes of the file. Raises `OSError`.

    The disk gets what was written while the next part is made, and the system keeps copies of the last parts
    only: to find memory for a large file takes longer than to write it.
    """
    descriptor = os.open(file, _NEW | os.O_TRUNC, 0o666)
    try:
        parts = _Parts(descriptor)
        yield parts.write
        parts.flush()
    finally:
        os.close(descriptor)


class _Parts:
    """A file that is written in parts, small ones several at once: to each call to the system a file server
    may have to answer."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._written, self._small = descriptor, 0, bytearray()

    def write(self, content: bytes | memoryview) -> None:
        """Write it, at once or with what comes next."""
        if len(self._small) + len(content) <= _SMALL:
            self._small += content
            return
        self.flush()
        self._put(content)

    def flush(self) -> None:
        """Write what has waited."""
        small, self._small = self._small, bytearray()
        if small:
            self._put(small)

    def _put(self, content: bytes | bytearray | memoryview) -> None:
        _write_all(self._descriptor, content)
        before, self._written = self._written, self._written + len(content)
        if self._written // _WINDOW > before // _WINDOW:
            _let_go(self._descriptor, max(0, self._written - 2 * _WINDOW), self._written)


def _let_go(descriptor: int, first: int, last: int) -> None:
    """Have the system begin to write out these bytes of a file, and forget those that are on the disk."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # a pipe
            os.posix_fadvise(descriptor, first, last - first, os.POSIX_FADV_DONTNEED)


def append(file: Path, content: bytes) -> None:
    """Append to a file, all of it or nothing. Raises `OSError`."""
    descriptor = os.open(file, _NEW | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        try:
            _write_all(descriptor, content)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes | bytearray | memoryview) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _touch(file: Path) -> None:
    os.close(os.open(file, _NEW, 0o666))


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """Write files, each whole or as it was before: all are on the disk before the first one gets its name.

    A link stays, and what it leads to is replaced. A pipe or a device is written to. Raises `OSError`.
    """
    with ExitStack() as stack:
        finished = []
        for file, content in contents.items():
            if _is_special(file):
                write_file(file, content)
                continue
            target = Path(os.path.realpath(file))
            clear(target)
            hidden = stack.enter_context(claimed(target, _touch))
            write_file(hidden, content)
            with suppress(OSError):  # who has restricted a file keeps it so
                hidden.chmod(stat.S_IMODE(target.stat().st_mode))
            fsync(hidden)
            finished.append((hidden, target))
        for hidden, target in finished:
            hidden.replace(target)
        for folder in {target.parent for _, target in finished}:
            fsync(folder)


def replace_file(file: Path, content: bytes) -> None:
    """`replace_files` for one."""
    replace_files({file: content})


def _is_special(file: Path) -> bool:
    with suppress(OSError):
        return not stat.S_ISREG(file.stat().st_mode) and not file.is_dir()
    return False


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder under a hidden name beside `path`, to be filled and then put in place; it is gone at the end.

    The folders above are made if they are missing. Raises `OSError`.
    """
    recover(path)
    clear(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with claimed(path, Path.mkdir) as folder:
        yield folder


def put_in_place(folder: Path, path: Path) -> None:
    """Give a `new_folder` the name `path` once it is on the disk. What had that name goes when that is done.

    Of a link only the link goes. Raises `OSError`; then nothing has changed, unless the disk could not be
    waited for at the very end.
    """
    for file in [*folder.iterdir(), folder]:
        fsync(file)
    if not os.path.lexists(path):
        folder.rename(path)
    elif not _exchange(folder, path):
        _step_aside(folder, path)
    fsync(path.parent)


def _step_aside(folder: Path, path: Path) -> None:
    old = folder.with_name(folder.name.replace(".tmp-", ".old-"))
    with held(path):
        path.rename(old)
        try:
            folder.rename(path)
        except BaseException:
            old.rename(path)
            raise
        with suppress(OSError):  # no longer to be recovered: it is deleted like what was exchanged
            old.rename(folder)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    rename = (
        getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    )
    if rename is None:
        return False
    if not rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE):
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Make room on that disk."),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM), "Give yourself the permission to write there, or choose another path."
    ),
    errno.EROFS: "That disk is read-only: choose a path on another one.",
    errno.EFBIG: "Files of this size are not allowed there: raise ulimit -f, or choose another disk.",
    errno.EIO: "That disk fails: choose a path on another one.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


def remedy(error: OSError) -> str:
    """What to do about a file that could not be written, in a sentence that fits the cause."""
    return _REMEDIES.get(error.errno or 0, "Choose another path.")


def what_lacks(path: Path, name: str, error: OSError) -> str:
    """`path`, and why there is no file `name` in it to read, in the words of an error message."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        if path.is_dir():
            return f"{path}, a folder without {name}"
        if path.is_file():
            return f"{path}, a file"
    return f"{path}: {error.strerror}"
