"""The process's own random numbers while a program runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def random_numbers(seed: int | None) -> Iterator[None]:
    """Python's and NumPy's generators as they are, or from `seed`; afterwards as they were."""
    held = random.getstate(), np.random.get_state()
    try:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
        yield
    finally:
        random.setstate(held[0])
        np.random.set_state(held[1])
