"""What the processes of one training, each with devices of its own, say to each other.

Mirror: palm.torch_impl.processes.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils


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
