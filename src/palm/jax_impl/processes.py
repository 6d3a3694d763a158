"""What the processes of one training, each with devices of its own, say to each other.

Mirror: palm.torch_impl.processes.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from palm.errors import BackendError, PalmError
from palm.tracing.turns import interruptibly

# Who does not answer for so many seconds is lost, and the others end.
_LOST = 30
# So long an error that Python has found by itself has to be told before JAX's own end of the process.
_MOMENT = 2.0
_STATUS = 2
# What errors of JAX say that come of another process: they have no class of their own.
_OF_OTHERS = ("gloo", "nccl", "coordination", "heartbeat", "barrier", "socket closed", "connection")


@contextmanager
def together() -> Iterator[None]:
    """What all processes do together: if one of them is gone, the others end with an error that says so.

    Raises `BackendError` then.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if isinstance(error, PalmError) or not is_joined() or not _is_of_others(error):
            raise
        reason = str(error).partition("\n")[0].rstrip(".")
        raise BackendError(
            f"the processes of a mesh must all go on; got no answer from another one: {reason}. "
            "See what the other one says, and start all of them again."
        ) from error


def join() -> None:
    """Join the processes that a cluster started (SLURM, a TPU slice, …), which JAX finds out by itself; or
    those that JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID describe.

    Raises `BackendError` if there is neither. JAX must not have been used before.
    """
    if is_joined():
        return
    given = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    numbers: dict[str, Any] = {
        name: int(os.environ[key]) for name, key in given.items() if os.environ.get(key, "").isdecimal()
    }
    try:
        interruptibly(partial(jax.distributed.initialize, **numbers, heartbeat_timeout_seconds=_LOST))
    except (RuntimeError, ValueError) as error:
        raise BackendError(
            f"processes must be those of a cluster that JAX knows; got {str(error).partition(chr(10))[0]}. "
            "Set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or start them with SLURM."
        ) from None
    if os.name == "posix":
        _tell_of_abort()


def is_joined() -> bool:
    """Whether this process has joined others, or itself alone."""
    return jax.distributed.is_initialized()


def several() -> bool:
    """Whether there are several processes."""
    return jax.process_count() > 1


def leave() -> None:
    """What an error in this process makes necessary: that it ends without waiting for the others.

    JAX would wait at exit until all come there, who wait for this one. Its exit status is 2 then.
    """
    if is_joined():
        atexit.register(_end)


def agreed(flag: bool) -> bool:
    """Whether the flag is set in any of the processes. All of them must ask.

    Raises `BackendError` where one of them is gone.
    """
    return bool(greatest(np.array(flag)))


@together()
def greatest(array: np.ndarray) -> np.ndarray:
    """Element by element, the largest that a process gives, of arrays of one shape and dtype. All must ask.

    Raises `BackendError` where one of them is gone.
    """
    if not several():
        return array
    return np.asarray(multihost_utils.process_allgather(array)).max(0)


@together()
def wait() -> None:
    """Return once all processes have come here. Raises `BackendError` where one of them is gone."""
    if several():
        multihost_utils.sync_global_devices("palm")


def numbered() -> tuple[int, int]:
    """The number of this process, from 0, and how many there are."""
    return jax.process_index(), jax.process_count()


@together()
def share(content: bytes) -> bytes:
    """What the first process gives, to all. All of them must ask.

    Raises `BackendError` where one of them is gone.
    """
    if not several():
        return content
    length = int(multihost_utils.broadcast_one_to_all(np.array(len(content))))
    found = np.zeros(length, np.uint8)
    if jax.process_index() == 0:
        found[:] = np.frombuffer(content, np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(found))


def _is_of_others(error: Exception) -> bool:
    return any(word in str(error).lower() for word in _OF_OTHERS)


def _tell_of_abort() -> None:
    """Once a process is gone, JAX aborts the others from a thread of its own: say what to do, and end.

    Python's own handlers of signals run in the main thread only, and that is too late.
    """
    set_handler = ctypes.CDLL(None).signal
    set_handler.restype = ctypes.c_void_p
    set_handler(int(signal.SIGABRT), _ON_ABORT)


def _aborted(_: int) -> None:
    time.sleep(_MOMENT)
    told = (
        "palm: the processes of a mesh must all go on; JAX ends this one, as it says above: another one is "
        "gone. See what the other one says, and start all of them again.\n"
    )
    os.write(2, told.encode())
    os._exit(_STATUS)


# It must live as long as the process.
_ON_ABORT = ctypes.CFUNCTYPE(None, ctypes.c_int)(_aborted)


def _end() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(_STATUS)
