"""What the processes of one training, each with devices of its own, say to each other.

Mirror: palm.torch_impl.processes.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from palm.errors import BackendError

# Who does not answer for so many seconds is lost, and the others end.
_LOST = 30


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
        jax.distributed.initialize(**numbers, heartbeat_timeout_seconds=_LOST)
    except (RuntimeError, ValueError) as error:
        raise BackendError(
            f"processes must be those of a cluster that JAX knows; got {str(error).partition(chr(10))[0]}. "
            "Set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or start them with SLURM."
        ) from None


def is_joined() -> bool:
    """Whether this process has joined others, or itself alone."""
    return jax.distributed.is_initialized()


def several() -> bool:
    """Whether there are several processes."""
    return jax.process_count() > 1


def agreed(flag: bool) -> bool:
    """Whether the flag is set in any of the processes. All of them must ask."""
    if not several():
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def wait() -> None:
    """Return once all processes have come here."""
    if several():
        multihost_utils.sync_global_devices("palm")


def numbered() -> tuple[int, int]:
    """The number of this process, from 0, and how many there are."""
    return jax.process_index(), jax.process_count()


def share(content: bytes) -> bytes:
    """What the first process gives, to all. All of them must ask."""
    if not several():
        return content
    length = int(multihost_utils.broadcast_one_to_all(np.array(len(content))))
    found = np.zeros(length, np.uint8)
    if jax.process_index() == 0:
        found[:] = np.frombuffer(content, np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(found))
