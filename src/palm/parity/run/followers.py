"""The other processes of a torch side on a mesh, which has one for each device."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from palm.process import REFUSED, end, start_python, tell

# A process that has done the same as this one ends at once.
_SECONDS = 60


@contextmanager
def with_followers(request: dict[str, Any]) -> Iterator[None]:
    """Start them, in the environment that torchrun sets; each does what is asked for, too.

    If one of them fails, it says why, and this process ends.
    """
    count = request.get("devices", 1) if request["backend"] == "torch" else 1
    if count == 1 or "RANK" in os.environ:
        yield
        return
    threads = str(max(1, (os.cpu_count() or 1) // count))
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    common["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", threads)
    os.environ.update({**common, "RANK": "0", "LOCAL_RANK": "0"})
    others = [_started({**common, "RANK": str(i), "LOCAL_RANK": str(i)}, request) for i in range(1, count)]
    for other in others:
        threading.Thread(target=_watch, args=(other,), daemon=True).start()
    try:
        yield
        for other in others:
            other.wait(_SECONDS)
    finally:
        for other in others:
            end(other)


def _started(env: dict[str, str], request: dict[str, Any]) -> subprocess.Popen[str]:
    process = start_python("palm.parity.run.worker", env=env, stdout=subprocess.DEVNULL)
    tell(process, request)
    return process


def _watch(process: subprocess.Popen[str]) -> None:
    if process.wait() > 0:
        os._exit(REFUSED)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
