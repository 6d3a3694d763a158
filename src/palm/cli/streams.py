"""Standard output and error of a command: closed, full, without a reader, or of a locale without letters."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO


class _Watched(io.FileIO):
    """A descriptor that remembers how writing to it failed."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


class _Forgetful(io.FileIO):
    """A descriptor for what may be lost: where nobody takes it, it is dropped."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def prepare() -> None:
    """Give the process streams that can be used, whatever it was started with.

    Standard error takes everything: a message that nobody can see must not end a run. Standard output may
    raise `OSError`. An encoding that lacks a character writes another. The descriptors 0 to 2 are taken, so
    that no file is opened as one of them and written to by mistake.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stream(_Watched(1, "w", closefd=False), sys.stdout)
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(_Forgetful(2, "w", closefd=False), sys.stderr)


def _stream(raw: io.FileIO, like: TextIO | None) -> TextIO:
    encoding = "utf-8" if like is None else like.encoding
    is_seen = raw.isatty() or isinstance(raw, _Forgetful)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="replace", line_buffering=is_seen
    )


def why_lost(stream: TextIO) -> str | None:
    """Why the stream takes nothing more, in words; None if it does. Then what waits in it is dropped."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    if not isinstance(raw, _Watched) or raw.failure is None:
        return None
    os.dup2(os.open(os.devnull, os.O_WRONLY), raw.fileno())  # or Python reports it at exit
    return raw.failure.strerror
