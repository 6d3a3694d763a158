"""The types of arrays that palm hands out and takes, and how it reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

# float64, float32, or ml_dtypes' bfloat16, which NumPy has no static type for.
Array: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float64 | np.float32]]
# Token ids.
Ids: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Arrays: TypeAlias = dict[str, Array]
# Weights, gradients or taps by name, only read.
Named: TypeAlias = Mapping[str, np.ndarray]


def as_numpy(given: Any) -> tuple[np.ndarray, str | None]:
    """An array of NumPy or of either framework, from any device, and the name of its dtype.

    A torch tensor comes as float64. The name is None for numbers without a dtype, such as a list's.
    """
    if hasattr(given, "detach"):  # torch gives NumPy neither what has a gradient nor its bfloat16
        tensor = given.detach().cpu()
        return tensor.double().numpy(), str(tensor.dtype).removeprefix("torch.")
    array = np.asarray(given)
    return array, array.dtype.name if hasattr(given, "dtype") else None
