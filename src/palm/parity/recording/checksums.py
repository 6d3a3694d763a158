"""What is said of a large array without a copy of it: statistics and checksums, piece by piece.

Gradients and weights of torch come as transposed views; some rows at a time are copied, within the cache.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from palm.spec.rounding import rms

# Elements that are looked at at a time: few enough to stay in the cache.
_CHUNK = 1 << 19
# Columns that are copied at a time.
_TILE = 512
T = TypeVar("T")


def chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Some rows at a time, (…, w) as (rows, w), contiguous, in order."""
    matrix = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
    step = max(1, _CHUNK // max(matrix.shape[1], 1))
    for start in range(0, len(matrix), step):
        rows = matrix[start : start + step]
        if rows.flags.c_contiguous:
            yield rows
            continue
        copied = np.empty_like(rows, order="C")
        for first in range(0, rows.shape[1], _TILE):  # several times as fast as in one go
            copied[:, first : first + _TILE] = rows[:, first : first + _TILE]
        yield copied


def each(of: Callable[[np.ndarray], T], arrays: Mapping[str, np.ndarray]) -> dict[str, T]:
    """`of` each array by name, several at a time: hashing and NumPy let other threads run."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return dict(zip(arrays, threads.map(of, arrays.values()), strict=True))


def digest_of(weight: np.ndarray) -> str:
    """SHA-256 of a weight as numbers: of its float32 bits if those hold it, so that bfloat16 compares."""
    target: type[np.floating[Any]] = np.float32
    with np.errstate(over="ignore"):
        if weight.dtype == np.float64 and not np.array_equal(weight.astype(np.float32), weight):
            target = np.float64
    digest = hashlib.sha256()
    for chunk in chunks(weight):
        digest.update(chunk.astype(target, copy=False).data)
    return digest.hexdigest()


def statistics(array: np.ndarray) -> dict[str, Any]:
    """Shape, rms, largest absolute value, how many elements are not finite, SHA-256 of the bits."""
    digest = hashlib.sha256()
    finite, largest, squares = 0, 0.0, 0.0
    for chunk in chunks(array):
        digest.update(chunk.view(np.uint8).data)
        wide = chunk.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            finite += int(np.isfinite(wide).sum())
            largest = max(largest, float(np.abs(wide).max()))
            squares += rms(wide) ** 2 * wide.size
    return {
        "shape": list(array.shape),
        "rms": math.sqrt(squares / max(array.size, 1)),
        "largest": largest,
        "not_finite": array.size - finite,
        "sha256": digest.hexdigest(),
    }
