"""A process of a comparison's own for each side: what it is asked, how far it is, and how it ended."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable
from typing import IO, Any

from palm import errors
from palm.errors import PalmError, ProbeError
from palm.process import end, refusal, start_python, tell

# What a worker says when a recording is on the disk.
RECORDED = "recorded"


class Child:
    """One `palm.parity.run.worker`, which never outlives the `with` block.

    `name`: what messages call it, None for the only one. `on_step(step)` is told of each finished step.
    """

    def __init__(self, name: str | None, request: dict[str, Any], on_step: Callable[[str], None]) -> None:
        self._name, self._on_step = name, on_step
        self._recorded, self._has_ended, self._condition = 0, False, threading.Condition()
        self._complaints: list[str] = []
        self._process = start_python(
            "palm.parity.run.worker",
            env=_environment(request),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        # Daemons: a signal may come before the `with` block, and nothing then waits for what ends with us.
        self._readers = [
            threading.Thread(target=self._listen, daemon=True),
            threading.Thread(
                target=_follow, args=(self._process.stderr, self._complaints.append), daemon=True
            ),
        ]
        for reader in self._readers:
            reader.start()
        tell(self._process, request)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        end(self._process)
        for reader in self._readers:
            reader.join()
        with self._process:  # closes its pipes
            pass

    def wait_for(self, count: int) -> None:
        """Until it has written so many recordings. Raises as `wait`."""
        with self._condition:
            self._condition.wait_for(lambda: self._recorded >= count or self._has_ended)
        if self._recorded < count:
            self.wait()

    def wait(self) -> None:
        """Until it has ended. Raises the worker's own `PalmError`, or `ProbeError` if it died."""
        status = self._process.wait()
        for reader in self._readers:
            reader.join()
        if not status:
            return
        words = "\n".join(self._complaints)
        prefix = f"{self._name}: " if self._name else ""
        told = refusal(status, words)
        if told is not None:
            raise getattr(errors, told[0], PalmError)(prefix + told[1])
        if status < 0:
            killed = signal.Signals(-status)
            hint = " Out of memory? Use a smaller --length or --batch." if killed == signal.SIGKILL else ""
            words = f"{killed.name}.{hint}\n{words}".rstrip()
        raise ProbeError(
            f"{prefix}the process of this side must finish; it ended with status {status}: {words}"
        )

    def _listen(self) -> None:
        _follow(self._process.stdout, self._hear)
        with self._condition:
            self._has_ended = True
            self._condition.notify_all()

    def _hear(self, line: str) -> None:
        if line != RECORDED:
            self._on_step(line)
            return
        with self._condition:
            self._recorded += 1
            self._condition.notify_all()


def _environment(request: dict[str, Any]) -> dict[str, str]:
    """What JAX reads when it starts: whether it has float64, and how many devices it makes of a CPU."""
    found = {"JAX_ENABLE_X64": str(request["dtype"] == "float64")}
    if request.get("devices", 1) > 1:
        found["JAX_NUM_CPU_DEVICES"] = str(request["devices"])
    return found


def _follow(stream: IO[str] | None, consume: Callable[[str], None]) -> None:
    for line in stream or ():
        consume(line.rstrip("\n"))
