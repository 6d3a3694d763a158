"""The types of arrays that palm hands out and takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

# float64, float32, or ml_dtypes' bfloat16, which NumPy has no static type for.
Array: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float64 | np.float32]]
# Token ids.
Ids: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Arrays: TypeAlias = dict[str, Array]
# Weights, gradients or taps by name, only read.
Named: TypeAlias = Mapping[str, np.ndarray]
