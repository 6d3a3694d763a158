"""Reading a file that nobody vouches for: opened once, regular, of a known size, hashed as it is read.

A second look at the same name may find another file. So everything about one file goes through one
descriptor: its kind, its size, its bytes and their SHA-256.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, FileIO

import numpy as np

_CHUNK = 1 << 22
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """A regular file, open for reading, without waiting for anybody.

    It gives as many bytes as it is asked for, unless the file ends before: the system may give fewer. Raises
    `OSError` for a folder, FIFO, socket or device, and for what is no name of a file.
    """
    waits_for_nobody = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, os.O_RDONLY | waits_for_nobody)
    except ValueError as error:  # a zero in it, or characters that no name of this system has
        raise OSError(errno.EINVAL, f"No name of a file: {error}", os.fspath(path)) from None
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            kind = _KINDS.get(stat.S_IFMT(mode), "something else")
            raise OSError(errno.EINVAL, f"It is {kind}, and no regular file", os.fspath(path))
        return BufferedReader(FileIO(descriptor))
    except BaseException:
        os.close(descriptor)
        raise


class Reader:
    """A file that is read from front to back, and hashed on the way. `size`: as the system knows it."""

    def __init__(self, stream: BufferedReader) -> None:
        self.stream = stream
        self.size = os.fstat(stream.fileno()).st_size
        self.at = 0
        self._digest = hashlib.sha256()

    def read(self, count: int) -> bytes:
        """The next `count` bytes, fewer at the end. Nothing is allocated for bytes that are not there."""
        content = bytearray(max(0, min(count, self.size - self.at)))
        return bytes(content[: self.into(memoryview(content))])

    def into(self, target: memoryview) -> int:
        """Fill `target`, and say how many bytes there were."""
        filled = 0
        while filled < len(target):
            count = self.stream.readinto(target[filled : filled + _CHUNK])
            if not count:
                break
            self._digest.update(target[filled : filled + count])
            filled += count
        self.at += filled
        return filled

    def fill(self, array: np.ndarray) -> None:
        """Read the next bytes as the numbers of an array. Raises `OSError` if the file ends before."""
        if self.into(array.reshape(-1).view(np.uint8).data) < array.nbytes:
            raise OSError(errno.EIO, "It became shorter while it was read")

    def digest(self) -> str:
        """SHA-256 of what has been read."""
        return self._digest.hexdigest()

    def finish(self) -> str:
        """Read what is left, also what came after `size` was known; SHA-256 of all bytes of the file."""
        rest = memoryview(bytearray(min(_CHUNK, max(self.size - self.at, 1))))
        while self.into(rest):
            pass
        return self.digest()


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[Reader]:
    """A regular file to read once. Raises `OSError` as `open_regular` does."""
    with open_regular(path) as stream:
        yield Reader(stream)


def read_file(path: str | os.PathLike[str], most: int) -> bytes:
    """All bytes of a regular file. Raises `OSError`, also for more than `most` bytes."""
    with reading(path) as reader:
        if reader.size > most:
            raise OSError(errno.EFBIG, f"It has {reader.size:,} bytes, more than {most:,}", os.fspath(path))
        return reader.read(reader.size)
