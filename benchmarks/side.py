"""One side of a comparison: builds what its spec asks for and does its job once each time it is told to.

Started by timing.py. A line of JSON in, a line out: the spec, answered when the job was done for the first
time; then "run", answered with `seconds` and what else the job found. Ends with its input.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

from palm.training.hardware import give_back_holes, keep_memory

Run = Callable[[], dict[str, Any]]


def peak_rss() -> int:
    """The most memory this process has had so far, in bytes. Linux tells KiB, macOS bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def serve(spec: dict[str, Any], requests: Any, answers: Any) -> None:
    """Answer until the requests end. `spec["framework"]` says which module prepares the job."""
    framework = importlib.import_module(f"{spec['framework']}_side")

    def answer(words: dict[str, Any]) -> None:
        on_device = framework.peak_bytes()
        peak = peak_rss() if on_device is None else on_device
        print(json.dumps({**words, "peak_bytes": peak}), file=answers, flush=True)

    # Before anything is built, but with the framework loaded.
    before = peak_rss() if framework.peak_bytes() is None else 0
    job = framework.prepare(spec)
    run: Run = job.pop("run")
    answer({**job, "before_bytes": before, "device": framework.device_name(), "first": run()})
    give_back_holes()  # of a side that keeps its memory, between its turns as between steps
    for _ in requests:
        answer(run())
        give_back_holes()


def main() -> None:
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    spec = json.loads(sys.stdin.readline())
    if spec["model"] == "palm" and spec["job"] != "memory":
        keep_memory()  # as `palm train` does; the others are as they come
    if spec["framework"] == "torch" and spec["model"] == "palm":
        # The others' own setting stays: they flush nothing.
        from palm.torch_impl.train import flushing_thread  # noqa: PLC0415 - one framework a process

        with flushing_thread() as thread:
            thread.submit(serve, spec, sys.stdin, answers).result()
    else:
        serve(spec, sys.stdin, answers)


if __name__ == "__main__":
    main()
