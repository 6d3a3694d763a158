"""A process that the system kills, or one of whose calls it lets fail, at any call that concerns files.

strace tampers with the calls themselves, so that none is missed, whoever makes it: Python, NumPy,
safetensors. Each action runs in a process of its own, forked from one that has imported palm already.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import palm

STRACE = shutil.which("strace")
# How a process ends that one of palm's own errors ended.
REFUSED = 3
# As strace takes them.
CHANGES = (
    "open,openat,creat,write,pwrite64,writev,pwritev,fsync,fdatasync,rename,renameat,renameat2,"
    "unlink,unlinkat,rmdir,mkdir,mkdirat,chmod,fchmod,fchmodat,ftruncate,truncate,fallocate,link,"
    "linkat,symlink,symlinkat,copy_file_range,sendfile,utimensat"
)
READS = "openat,read,pread64,readv,preadv,getdents64,newfstatat,fstat"
_OPENS = ("open", "openat")
_OPENS_TO_CHANGE = re.compile(r"O_(WRONLY|RDWR|CREAT|TRUNC)")
_CALL = re.compile(r"(\d+) +(\w+)\((.*)")
_LET_ANYBODY_TRACE = 0x59616D61  # PR_SET_PTRACER, which asks Yama
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["system_calls", "operations"])


class Call(NamedTuple):
    """The `number`-th call of that name in a process, counted from 1."""

    name: str
    number: int


def changing_calls(action: Callable[..., Any], *given: Any, folder: Path) -> list[Call]:
    """The calls by which an action changes something in a folder. Only its main thread may make any."""
    return _calls(action, given, folder, CHANGES)


def reading_calls(action: Callable[..., Any], *given: Any, folder: Path) -> list[Call]:
    """The calls by which an action reads something in a folder."""
    return _calls(action, given, folder, READS)


def settled(count: Callable[[], list[Call]]) -> list[Call]:
    """What is counted twice in a row: the first process of its kind compiles, and writes that elsewhere."""
    before, found = [], count()
    for _ in range(4):
        before, found = found, count()
        if before == found:
            return found
    raise AssertionError("each process makes other calls")


def tampered(call: Call, how: str, action: Callable[..., Any], *given: Any) -> int:
    """How an action ends if that call is tampered with, as strace says it: signal=KILL, error=EIO."""
    # What strace writes nobody reads: a full pipe would stop it, and the action with it.
    inject = f"-o /dev/null -e inject={call.name}:{how}:when={call.number}"
    return _traced(action, given, inject, f"trace={call.name}")


def _calls(action: Callable[..., Any], given: tuple[Any, ...], folder: Path, names: str) -> list[Call]:
    log = folder.parent / f"{folder.name}.strace"
    assert not _traced(action, given, f"-f -y -s 0 -o {log}", f"trace={names}")
    counts, found, main = Counter[str](), [], None
    for line in log.read_text().splitlines():
        if not (call := _CALL.match(line)):
            continue
        process, name, arguments = call.groups()
        main = main or process
        concerns = str(folder) in arguments and (
            names is READS or name not in _OPENS or _OPENS_TO_CHANGE.search(arguments)
        )
        assert process == main or not concerns, line
        if process == main:
            counts[name] += 1
            if concerns:
                found.append(Call(name, counts[name]))
    return found


def _traced(action: Callable[..., Any], given: tuple[Any, ...], options: str, what: str) -> int:
    process = _PROCESSES.Process(target=_waiting, args=(action, given))
    process.start()
    _await(process, "State:\tT")
    command = ["strace", "-q", "-p", str(process.pid), "-e", what, *options.split()]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as tracer:
        _await(process, "TracerPid:\t", but="TracerPid:\t0")
        deadline = time.monotonic() + 120
        while process.exitcode is None and time.monotonic() < deadline:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                # Again: one that comes while strace attaches can be lost.
                os.kill(process.pid, signal.SIGCONT)
            process.join(1)
        if process.exitcode is None:
            state = Path(f"/proc/{process.pid}/status").read_text().split("State:")[1].splitlines()[0]
            process.kill()
            tracer.kill()
            raise TimeoutError(f"{options}: it does not end; its state is {state.strip()}")
        tracer.communicate(timeout=60)
    return process.exitcode


def _waiting(action: Callable[..., Any], given: tuple[Any, ...]) -> None:
    ctypes.CDLL(None).prctl(_LET_ANYBODY_TRACE, -1, 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        action(*given)
    except palm.PalmError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(REFUSED)


def _await(process: BaseProcess, words: str, but: str = "\0") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if words in status and f"{but}\n" not in status:
            return
        time.sleep(0.001)
    raise TimeoutError(f"{words} is not so after a minute")
