"""The help of a command on a terminal that is narrower than a sentence."""

from __future__ import annotations

import shutil
import textwrap
from typing import Any, TextIO

_BOX = ("╭", "│", "╰")


class Wrapping:
    """A stream that wraps lines as wide as the terminal. Boxes are that already; colours are left alone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write whole lines."""
        width = shutil.get_terminal_size().columns
        return self._stream.write("\n".join(_wrapped(line, width) for line in text.split("\n")))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _wrapped(line: str, width: int) -> str:
    if len(line) <= width or "\x1b" in line or line.startswith(_BOX):
        return line
    indent = "    " if line.startswith("usage: ") else ""
    return textwrap.fill(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
