"""Ctrl-C while the command `palm` is still being loaded: one line and status 130, as later.

There is nothing to put back yet, so the process ends at once. A program that imports palm keeps its Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130


def raise_again() -> None:
    """From now on Ctrl-C raises `KeyboardInterrupt`, as usual."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, b"palm: interrupted\n")
    finally:
        os._exit(INTERRUPTED)


def _is_command() -> bool:
    as_module = sys.argv[:1] == ["-m"] and "palm" in sys.orig_argv
    return as_module or os.path.basename("".join(sys.argv[:1])) in ("palm", "palm.exe")


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
