"""A Python of palm's own making: how it is started, what is said to it, and how the two end together."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NoReturn

# Messages have characters that the user's locale may lack, and names that are no text.
_ENCODING = "utf-8:surrogateescape"
# How a child exits over what its user can mend, and the line of its words that says what.
REFUSED, _REFUSAL = 3, "refused "


def start_python(
    module: str,
    *arguments: str,
    python: str | None = None,
    env: Mapping[str, str] | None = None,
    **pipes: Any,
) -> subprocess.Popen[str]:
    """Run a module in a process group of its own. Standard input is a pipe: see `lines_of_parent`.

    `-P`: what lies in the working folder, a file numpy.py say, is not imported. Raises `OSError`.
    """
    return subprocess.Popen(
        [python or sys.executable, "-P", "-m", module, *arguments],
        env={**os.environ, "PYTHONIOENCODING": _ENCODING, **(env or {})},
        process_group=0,
        stdin=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="surrogateescape",
        **pipes,
    )


def tell(process: subprocess.Popen[str], message: Any) -> None:
    """Say something, as one line of JSON. A process that is gone does not hear it: its status says why."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(json.dumps(message, default=int) + "\n")
        process.stdin.flush()


def refusal(status: int, words: str) -> tuple[str, str] | None:
    """The kind and the message of the error with which a child ended by `refuse`; None if it did not.

    `words` are what it wrote on standard error.
    """
    lines = [line for line in words.splitlines() if line.startswith(_REFUSAL)]
    if status != REFUSED or not lines:
        return None
    kind, message = json.loads(lines[-1].removeprefix(_REFUSAL))
    return kind, message


def refuse(error: Exception) -> NoReturn:
    """In the child: end over what its user can mend."""
    print(_REFUSAL + json.dumps([type(error).__name__, str(error)]), file=sys.stderr)
    sys.exit(REFUSED)


def end(process: subprocess.Popen[str]) -> None:
    """Kill it with all that it started, if it still runs."""
    if process.poll() is None:
        _kill_group(process.pid, process.kill)


def lines_of_parent() -> Iterator[str]:
    """In the child: the lines on standard input.

    The parent keeps it open as long as it lives. At its end, however that came, this process and what it
    started end too, whatever they do at the time.
    """
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    # A descriptor of its own: Python closes sys.stdin at exit, and would wait for a thread that reads it.
    given = os.fdopen(os.dup(sys.stdin.fileno()), encoding="utf-8")

    def read() -> None:
        for line in given:
            lines.put(line)
        _kill_group(os.getpid(), lambda: os._exit(1))

    threading.Thread(target=read, daemon=True).start()
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - a user's program may read it to the end
    return iter(lines.get, None)


def _kill_group(pid: int, otherwise: Callable[[], None]) -> None:
    """Kill the process group that `pid` leads; where there are none, do the other thing."""
    if hasattr(os, "killpg") and os.getpgid(pid) == pid:
        os.killpg(pid, signal.SIGKILL)
    else:
        otherwise()
