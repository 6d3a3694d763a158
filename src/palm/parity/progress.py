"""A line on standard error that tells a person who waits for a comparison how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

# Seconds: nothing is shown before the first, and the line is written again after the second.
_PATIENCE, _PERIOD = 2.0, 0.5


@contextmanager
def progress(steps: int) -> Iterator[Callable[[str], None]]:
    """Yield a function that takes the name of each finished one of `steps` steps.

    The line appears after two seconds, and only on a terminal or in a notebook. It disappears at the end.
    """
    finished: list[str] = []
    done = Event()
    thread = Thread(target=_show, args=(finished, steps, done), daemon=True)
    if is_watched():
        thread.start()
    try:
        yield finished.append
    finally:
        done.set()
        if thread.is_alive():
            thread.join()


def is_watched() -> bool:
    """Whether standard error is a terminal or a notebook's. A program without a console has none."""
    return sys.stderr is not None and (sys.stderr.isatty() or _is_notebook())


def _is_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _show(finished: list[str], steps: int, done: Event) -> None:
    start, width = time.monotonic(), 0
    if done.wait(_PATIENCE):
        return
    while not done.wait(_PERIOD if width else 0.0):
        told = f"{len(finished)} of {steps} steps, " if steps else ""
        last = f", last: {finished[-1]}" if finished else ""
        line = f"palm.compare: {told}{time.monotonic() - start:.0f} s{last}"
        sys.stderr.write(f"\r{line:{width}}")
        sys.stderr.flush()
        width = len(line)
    sys.stderr.write(f"\r{'':{width}}\r")
    sys.stderr.flush()
