"""The process's own random numbers while a program runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def random_numbers(*, others: bool = False) -> Iterator[None]:
    """Python's and NumPy's generators as they are, or made to draw others; afterwards as they were."""
    held = random.getstate(), np.random.get_state()
    try:
        if others:  # not from a fixed seed: it may be the one that the user has set
            random.seed(random.getrandbits(64))
            np.random.seed(np.random.randint(2**32, size=8, dtype=np.uint32))
        yield
    finally:
        random.setstate(held[0])
        np.random.set_state(held[1])
