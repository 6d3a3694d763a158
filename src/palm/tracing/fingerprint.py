"""A few numbers that know an array by its values, whatever their order.

Two arrays of float64 numbers have equal fingerprints, to rounding, if one holds the elements of the other:
transposed, reshaped, with its heads on another axis. By chance that does not happen.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Of the finite elements: their fraction, rms; and of the elements in units of it, mean, mean absolute value,
# third and fourth moment, largest and smallest.
LENGTH = 8
# Of a run that is not aligned.
NONE = np.full(LENGTH, np.nan)
# A fill is below this, and so many times larger than what is not filled.
_LOW, _BESIDE = -1e4, 1e-3
# So many elements are summed at once: they stay in the cache.
_PIECE = 1 << 14


def sums(x: Any, xp: Any) -> list[Any]:
    """Sums from which `fingerprint` is made, by the functions of `xp`: torch, where the tensor is.

    Shapes: x (n,) float64, n ≥ 1 -> eight scalars. Powers are of x / largest, so that none overflows.
    """
    finite = xp.isfinite(x)
    x = xp.where(finite, x, 0.0)
    largest, smallest = x.max(), x.min()
    scale = xp.maximum(xp.abs(largest), xp.abs(smallest))
    y = x / xp.where(scale > 0, scale, 1.0)
    squares = y * y
    return [
        finite.sum(),
        largest,
        smallest,
        scale,
        y.sum(),
        xp.abs(y).sum(),
        squares.sum(),
        (squares * y).sum(),
        (squares * squares).sum(),
    ]


def fingerprint(found: np.ndarray, size: int) -> np.ndarray:
    """The fingerprint (8,) of an array of `size` elements from its `sums` (9,); NaN of an empty one."""
    count, largest, smallest, scale, first, absolute, second, third, fourth = found
    if not size:
        return NONE
    if not count or not scale:
        return np.array([count / size, *[0.0] * (LENGTH - 1)])
    root = np.sqrt(second / count)
    moments = [first / root, absolute / root, third / root**3, fourth / root**4]
    ends = [largest / (root * scale), smallest / (root * scale)]
    return np.array([count / size, root * scale, *(moment / count for moment in moments), *ends])


def of_array(x: np.ndarray) -> np.ndarray:
    """The fingerprint of a NumPy array."""
    if not x.size:
        return NONE
    flat = real(x).ravel(order="K")  # in any order
    pieces = _pieces(flat)
    if pieces[:, 2].min() <= _LOW:
        pieces = _pieces(unfilled(flat))
    largest, smallest, scale = pieces[:, 1].max(), pieces[:, 2].min(), pieces[:, 3].max()
    shares = pieces[:, 3] / scale if scale else pieces[:, 3]
    powers = [pieces[:, 4:6].T @ shares, *(pieces[:, 4 + k] @ shares**k for k in (2, 3, 4))]
    return fingerprint(np.hstack((pieces[:, 0].sum(), largest, smallest, scale, *powers)), flat.size)


def _pieces(flat: np.ndarray) -> np.ndarray:
    """The `sums` of each piece, shape (pieces, 9)."""
    return np.array([_host_sums(flat[i : i + _PIECE]) for i in range(0, flat.size, _PIECE)])


def unfilled(x: np.ndarray) -> np.ndarray:
    """The elements with −∞ for a fill of hidden scores: a low number, the same in several places.

    −1e9 and −∞ hide alike, and beside such a number all others would be nothing in a sum.
    """
    low = x.min()
    if not low <= _LOW:
        return x
    finite = x[np.isfinite(x)]
    fill = finite.min() if finite.size else 0.0
    rest = finite[finite != fill]
    if fill > _LOW or rest.size in (0, finite.size - 1) or np.sqrt(np.mean(rest**2)) > _BESIDE * -fill:
        return x
    return np.where(x == fill, -np.inf, x)


def _host_sums(x: np.ndarray) -> list[float]:
    """`sums` of elements that are in the cache."""
    finite = np.isfinite(x)
    count = np.count_nonzero(finite)
    if count < x.size:
        x = np.where(finite, x, 0.0)
    largest, smallest = x.max(), x.min()
    scale = max(abs(largest), abs(smallest))
    y = x / scale if scale else x
    squares = y * y
    powers = [y.sum(), np.abs(y).sum(), squares.sum(), squares @ y, squares @ squares]
    return [count, largest, smallest, scale, *powers]


def real(x: np.ndarray) -> np.ndarray:
    """An array in float64; real and imaginary parts of complex numbers are a last axis of two."""
    if x.dtype.kind == "c":
        x = np.stack((x.real, x.imag), -1)
    return np.asarray(x, np.float64)
