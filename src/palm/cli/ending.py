"""How a command ends before its time: by a signal, or because nobody takes what it says."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from palm.interrupt import raise_again


class Terminated(BaseException):
    """The process was asked to end by SIGTERM."""


@contextmanager
def signals() -> Iterator[None]:
    """While it lasts, Ctrl-C raises `KeyboardInterrupt` and SIGTERM `Terminated`: what is held is put back.

    Other threads than the main one, and a handler of somebody else's, are left alone.
    """
    raise_again()
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
