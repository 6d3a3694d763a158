"""Counter-based random numbers keyed by (seed, name): the same in both wings, in any order, anywhere."""

from __future__ import annotations

import hashlib

import numpy as np

from palm.errors import ConfigError


def generator(seed: int, name: str) -> np.random.Generator:
    """A Philox generator of its own for `name`, independent of every other name's.

    Raises `ConfigError` unless `seed` is a non-negative int.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ConfigError(f"seed must be an int of at least 0; got seed={seed!r}. Use 0, 1, 2, …")
    digest = hashlib.sha256(f"palm/{int(seed)}/{name}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
