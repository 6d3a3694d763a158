"""What the processes of one training, each with a device of its own, say to each other.

Mirror: palm.jax_impl.processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from palm.errors import BackendError
from palm.tracing.turns import interruptibly

# A process that waits for another one so long takes it for lost: a batch takes seconds, a checkpoint minutes.
TIMEOUT = timedelta(minutes=10)


@contextmanager
def together() -> Iterator[None]:
    """What all processes do together: if one of them is gone, the others end with an error that says so.

    Raises `BackendError` then. Without torchrun, which ends them all, a process that neither goes on nor ends
    is given up after `TIMEOUT`.
    """
    try:
        yield
    except RuntimeError as error:
        # Gloo's errors have no class of their own.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        reason = str(error).partition("\n")[0].rstrip(".")
        raise BackendError(
            f"the processes of a mesh must all go on; got no answer from another one in process "
            f"{os.environ.get('RANK', '0')}: {reason}. See what the other one says, and start all of them "
            "again."
        ) from error


@together()
def join() -> None:
    """Join the processes that torchrun started, as its environment says: with NCCL where there are GPUs, a
    GPU a process by LOCAL_RANK, otherwise with Gloo.

    Raises `BackendError` if there is no such environment, or where one of them is gone.
    """
    if is_joined():
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        # Each process may see all GPUs of its machine, or its own alone.
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        kind = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        interruptibly(partial(dist.init_process_group, kind, timeout=TIMEOUT))
    except ValueError as error:
        missing = str(error).rpartition("rendezvous: ")[2]
        raise BackendError(
            f"a mesh of PyTorch must have processes that torchrun started; got {missing}. Start them: "
            "torchrun --nproc-per-node COUNT -m palm train --mesh …; or use --backend jax."
        ) from None


def is_joined() -> bool:
    """Whether this process has joined others, or itself alone."""
    return dist.is_available() and dist.is_initialized()


def several() -> bool:
    """Whether there are several processes."""
    return is_joined() and dist.get_world_size() > 1


def leave() -> None:
    """What an error in this process makes necessary: nothing. It ends without waiting for the others."""


def agreed(flag: bool) -> bool:
    """Whether the flag is set in any of the processes. All of them must ask.

    Raises `BackendError` where one of them is gone.
    """
    return bool(greatest(np.array(int(flag))))


@together()
def greatest(array: np.ndarray) -> np.ndarray:
    """Element by element, the largest that a process gives, of arrays of one shape and dtype. All must ask.

    Raises `BackendError` where one of them is gone.
    """
    if not several():
        return array
    on_cpu = "gloo" in dist.get_backend_config()  # a user may have joined them by NCCL alone
    found = torch.tensor(array, device="cpu" if on_cpu else "cuda")
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.numpy(force=True)


@together()
def wait() -> None:
    """Return once all processes have come here. Raises `BackendError` where one of them is gone."""
    if several():
        dist.barrier()


def numbered() -> tuple[int, int]:
    """The number of this process, from 0, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if several() else (0, 1)


@together()
def share(content: bytes) -> bytes:
    """What the first process gives, to all. All of them must ask.

    Raises `BackendError` where one of them is gone.
    """
    if not several():
        return content
    length = torch.tensor(len(content))
    dist.broadcast(length, 0)
    found = torch.zeros(int(length), dtype=torch.uint8)
    if dist.get_rank() == 0:
        found[:] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    dist.broadcast(found, 0)
    return found.numpy().tobytes()
