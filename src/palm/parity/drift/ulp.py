"""Units in the last place: how large they are, and weights that are moved by one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from palm.errors import ConfigError
from palm.spec.random import generator
from palm.spec.rounding import unit_roundoff

PRECISIONS = ("float64", "float32", "float16", "bfloat16")


def check_precision(precision: str | None) -> None:
    """Raise `ConfigError` unless it is None or one of `PRECISIONS`."""
    if precision is not None and precision not in PRECISIONS:
        raise ConfigError(
            f"precision must be one of {', '.join(PRECISIONS)}; got precision={precision!r}. Choose one; for "
            'TF32, "float16", which has the same unit roundoff.'
        )


def spacing(wide: np.ndarray, unit: float) -> np.ndarray:
    """One unit in the last place of each number, in a dtype of unit roundoff `unit`; 0 for 0.

    2^e · `unit` for 2^(e−1) ≤ |w| < 2^e.
    """
    return np.ldexp(unit, np.frexp(wide)[1]) * (wide != 0)


def moved_by_an_ulp(
    weights: Mapping[str, np.ndarray], seed: int, precision: str | None = None
) -> dict[str, np.ndarray]:
    """Every element one unit in the last place up or down, as a coin that `seed` tosses falls.

    It is a unit of the array's own dtype, or of `precision` if that is coarser: then the copy that is
    rounded to `precision` moves too.
    """
    moved = {}
    for name, array in weights.items():
        up = generator(seed, f"coin/{name}").integers(0, 2, array.shape, dtype=np.int8).astype(bool)
        own = str(array.dtype)
        if unit_roundoff(precision or own) > unit_roundoff(own):
            wide = array.astype(np.float64)
            step = spacing(wide, unit_roundoff(precision or own))
            moved[name] = (wide + np.where(up, step, -step)).astype(array.dtype)
        else:
            far = np.where(up, np.inf, -np.inf).astype(array.dtype)
            moved[name] = np.nextafter(array, far)
    return moved
