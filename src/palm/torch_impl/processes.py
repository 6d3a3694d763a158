"""What the processes of one training, each with a device of its own, say to each other.

Mirror: palm.jax_impl.processes.
"""

from __future__ import annotations

import torch
from torch import distributed


def several() -> bool:
    """Whether there are several processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def agreed(flag: bool) -> bool:
    """Whether the flag is set in any of the processes. All of them must ask."""
    if not several():
        return flag
    on_gpu = distributed.get_backend() == "nccl"
    found = torch.tensor(int(flag), device="cuda" if on_gpu else "cpu")
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return bool(found)


def wait() -> None:
    """Return once all processes have come here."""
    if several():
        distributed.barrier()
