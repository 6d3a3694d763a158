"""Sides of a comparison in processes of their own, asked in turn; and what their times come to.

Both frameworks have worker threads, and one process's settings (denormals, allocator, threads) must not touch
another side. So each side lives in a `side.py` process that does its job once each time it is told to: A B C
A B C, so that a machine that slows down slows all of them. What is compared is the ratio of each round.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

SIDE = Path(__file__).with_name("side.py")
# A comparison that takes longer than its budget ends after so many rounds.
LEAST_ROUNDS = 3
Spec = dict[str, Any]


class SideError(Exception):
    """A side's process ended; the message is its last line, `words` all of its end."""

    def __init__(self, message: str, words: str) -> None:
        super().__init__(message)
        self.words = words


class Spread(NamedTuple):
    """The median of some numbers, and the quartiles on both sides of it."""

    low: float
    median: float
    high: float


def spread(numbers: Sequence[float]) -> Spread:
    """Quartiles, by linear interpolation."""
    return Spread(*(float(q) for q in np.quantile(np.asarray(numbers, float), (0.25, 0.5, 0.75))))


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """`over` / `under`, round by round; of a side that failed, as far as it came."""
    return spread([a / b for a, b in zip(over, under, strict=False)])


@contextmanager
def started(spec: Spec) -> Iterator[Child]:
    """A side's process, which does not outlive the `with` block."""
    with (
        tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            [sys.executable, str(SIDE)],
            # Of one GPU, a side may not take what the others need before it needs it.
            env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            yield Child(spec, process, errors)
        finally:
            process.kill()
            # What was still on its way to a side that is gone must not be what the caller hears of.
            with suppress(BrokenPipeError):
                process.stdin.close()


class Child:
    """What is asked of one side's process, and what it says at its end."""

    def __init__(self, spec: Spec, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self._spec, self._process, self._errors = spec, process, errors

    def start(self) -> dict[str, Any]:
        """Build the side and do its job for the first time. Raises `SideError`."""
        return self._ask(self._spec)

    def run(self) -> dict[str, Any]:
        """Do the job once. Raises `SideError`."""
        return self._ask("run")

    def _ask(self, words: Any) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps(words) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it is gone already: why is told below
            pass
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        raise SideError(f"{how}: {lines[-1] if lines else 'no words'}"[:200], "\n".join(lines[-15:]))


Say = Callable[[str], None]


def measure(specs: Sequence[Spec], *, repeats: int, budget: float, alone: bool, say: Say) -> dict[str, Any]:
    """Every side's record by name: its `spec`, what it said of itself when `start`ed, and the runs.

    `alone`: one side after the other, where two do not fit beside each other or each needs a fresh process;
    otherwise all live at once and take turns. The first run compiles, the second warms up; neither counts.
    `budget`: seconds after which no new round begins, once there are `LEAST_ROUNDS`. A side that is left out
    has its reason in its spec already.
    """
    records = {spec["name"]: {"spec": spec, "runs": []} for spec in specs}
    for record in records.values():
        if reason := record["spec"].get("left_out"):
            record["left_out"] = reason
    taking_part = [[record] for record in records.values() if "left_out" not in record]
    for together in taking_part if alone else [[record for [record] in taking_part]]:
        _take_turns(together, repeats, budget, say)
    return records


def _take_turns(records: list[dict[str, Any]], repeats: int, budget: float, say: Say) -> None:
    with ExitStack() as stack:
        children = {}
        for record in records:
            name = record["spec"]["name"]
            say(f"starting {name}")
            children[name] = stack.enter_context(started(record["spec"]))
            record["start"] = _tried(record, children[name].start, say)
        began = time.perf_counter()
        # The first of these rounds warms up and is not kept.
        for number in range(repeats + 1):
            if number > LEAST_ROUNDS and time.perf_counter() - began > budget:
                break
            say(f"round {number} of {repeats}")
            for record in (record for record in records if "failed" not in record):
                run = _tried(record, children[record["spec"]["name"]].run, say)
                if number and run is not None:
                    record["runs"].append(run)


def _tried(record: dict[str, Any], ask: Callable[[], dict[str, Any]], say: Say) -> dict[str, Any] | None:
    try:
        return ask()
    except SideError as failure:
        record["failed"] = str(failure)
        say(f"{record['spec']['name']} failed\n{failure.words}")
        return None
