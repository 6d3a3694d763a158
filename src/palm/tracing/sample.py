"""Some elements of a value, the same ones in every run, and a value rounded to fewer bits."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from palm.tracing.fingerprint import real

# Of these, one in a hundred is ten: enough to tell how large an error is that few elements have.
_MOST = 1024
# So many bits a float64 number has behind the first one.
EXACT = 52


@lru_cache(maxsize=4096)
def chosen(size: int) -> np.ndarray | None:
    """The numbers of the elements that are kept of a value of `size`; None if all are."""
    return None if size <= _MOST else np.random.default_rng(size).integers(size, size=_MOST)


def sampled(x: np.ndarray) -> np.ndarray:
    """The kept elements of an array of numbers, in float64; of a complex one both parts."""
    at = chosen(x.size)
    kept = x if at is None else x[np.unravel_index(at, x.shape)]  # to flatten it may copy it
    return real(kept).reshape(-1).copy()


def rounded(x: Any, bits: int, factor: float, xp: Any) -> Any:
    """Float64 numbers, rounded to `bits` behind the first one, as their multiples by `factor` (Dekker 1971).

    xp: numpy or torch.
    """
    y = x * factor
    high = y * (2.0 ** (EXACT - bits) + 1)
    return xp.where(xp.isfinite(high), (high - (high - y)) / factor, x)
