"""Threads that read models, one that changes for a while what others read, and one that can be left waiting.

A traced program runs in float64 with what it holds replaced in place, under settings of the whole process.
So a trace is `alone`; everything else that palm does with a model is `shared` with whatever is too.
A thread never waits for itself: it may read what it has alone, or shares already.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_changed = threading.Condition()
# How often each thread shares now, and which thread is alone, as often as it says so.
_sharing: Counter[int] = Counter()
_alone: Counter[int] = Counter()


def _after_fork() -> None:
    """In a forked child only the thread that forked is left: what others did ends with them."""
    global _changed  # noqa: PLW0603 - the lock of the other one may be held by a thread that is gone
    _changed = threading.Condition()
    for threads in (_sharing, _alone):
        for thread in threads.keys() - {threading.get_ident()}:
            del threads[thread]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def shared() -> Iterator[None]:
    """While it lasts, no other thread is alone. Also a decorator."""
    with _taken(_sharing, among=(_alone,)):
        yield


@contextmanager
def alone() -> Iterator[None]:
    """While it lasts, no other thread is alone or shares. Also a decorator."""
    with _taken(_alone, among=(_alone, _sharing)):
        yield


def interruptibly(action: Callable[[], T]) -> T:
    """What an action gives that waits for other processes in C++: a signal can end this one meanwhile.

    Python's handlers of signals run in the main thread, and only once that is back from C++.
    """
    given: Future[T] = Future()

    def act() -> None:
        try:
            given.set_result(action())
        except BaseException as error:
            given.set_exception(error)

    threading.Thread(target=act, daemon=True).start()
    return given.result()


@contextmanager
def _taken(mine: Counter[int], among: tuple[Counter[int], ...]) -> Iterator[None]:
    me = threading.get_ident()
    with _changed:
        _changed.wait_for(lambda: all(thread == me for threads in among for thread in threads))
        mine[me] += 1
    try:
        yield
    finally:
        with _changed:
            mine[me] -= 1
            if not mine[me]:
                del mine[me]
            _changed.notify_all()
