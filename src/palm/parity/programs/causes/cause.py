"""What a cause is, and how one value is told from another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from palm.parity.programs.evidence import Half
from palm.parity.programs.layout import distance, layouts
from palm.parity.programs.words import CASTS, family
from palm.tracing.operation import Change

# Values that are equal in exact arithmetic are so to this in float64, through a few operations.
EQUAL = 1e-8
_LOW = {
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "float32": np.float32,
    "float8_e4m3": ml_dtypes.float8_e4m3fn,
}
# By the bits behind the first one; no array library has TF32, and some processors cut off what it lacks.
_BITS = {10: "TF32", 7: "bfloat16"}
# Fewer elements may have as few bits by chance.
_FEW = 8
# The same where each product was rounded to float32.
_ROUNDED = 2.0**-23
_MOST_SLICES = 4096


@dataclass(frozen=True)
class Cause:
    """Why two programs part: `kind` in a few words for a program, `text` in the user's words.

    `at_a`, `at_b`: the operations that it is about, where these are not the entries. `proof`: the change of a
    side, "a" or "b", after which the two meet.
    """

    kind: str
    text: str
    at_a: int | None = None
    at_b: int | None = None
    proof: tuple[str, Change] | None = None


def equal(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two arrays hold the same numbers in the same order, to rounding."""
    return x.size == y.size and distance(x.ravel(), y.ravel()) < EQUAL


def in_shape(x: np.ndarray, like: np.ndarray) -> np.ndarray | None:
    """x in the shape of another value, if it has as many elements on the same axes."""
    axes = [tuple(n for n in v.shape if n > 1) for v in (x, like)]
    return x.reshape(like.shape) if axes[0] == axes[1] else None


def coarse(y: np.ndarray) -> int | None:
    """How many bits behind the first one all elements have, if that is as few as TF32 or bfloat16 has."""
    if np.count_nonzero(y) < _FEW or not np.isfinite(y).all():
        return None
    mantissas = np.frexp(y)[0].ravel() * 2.0 ** (max(_BITS) + 1)
    if not (_whole(mantissas[:_FEW]) and _whole(mantissas)):  # most are seen not to by the first ones
        return None
    return next(bits for bits in sorted(_BITS) if _whole(mantissas * 2.0 ** (bits - max(_BITS))))


def _whole(x: np.ndarray) -> bool:
    return np.array_equal(x, np.rint(x))


def coarsened(x: np.ndarray, y: np.ndarray) -> str | None:
    """To what y was rounded, if it is x with fewer bits: `TF32`; None if it is not."""
    bits = coarse(y) if x.shape == y.shape else None
    if bits is None or not np.isfinite(x).all() or distance(x, y) < EQUAL:
        return None
    unit = np.ldexp(2.0**-bits, np.frexp(x)[1] - 1)
    return _BITS[bits] if np.all(abs(x - y) <= unit) else None


def relation(x: np.ndarray, y: np.ndarray) -> str | None:
    """How y was made of x, if it is plain to see: `times 2`, `shifted by 1 along axis 0`; None if equal."""
    if x.shape == y.shape and distance(x, y) < EQUAL:
        return None
    return next(_relations(x, y), None)


def value_name(half: Half, i: int) -> str:
    """A value in words: `the parameter layers.0.weight`, `the result of matmul of line 12`."""
    op = half.operations[i]
    if op.kind != "operation":
        return f"the {op.kind} {op.name}".rstrip()
    where = f" of line {op.place.line}" if op.place is not None else ""
    return f"the result of {family(op.op)}{where}"


def source(half: Half, i: int) -> int:
    """The operation that computed a value, seen through what only moves elements or changes their dtype."""
    op = half.operations[i]
    return source(half, op.inputs[0]) if len(op.inputs) == 1 and (op.moves or op.op in CASTS) else i


def _relations(x: np.ndarray, y: np.ndarray) -> Iterator[str]:
    if x.shape == y.shape:
        yield from _of_numbers(x, y)
        for axis in range(x.ndim):
            yield from _along(x, y, axis)
    if x.size == y.size > 1:
        if any(equal(turned, y) for turned in layouts(x, y.shape)):
            yield "with its axes in another order"
        if equal(np.sort(x, axis=None), np.sort(y, axis=None)):
            yield "with its elements in another order"


def _of_numbers(x: np.ndarray, y: np.ndarray) -> Iterator[str]:
    for name, dtype in _LOW.items():
        if distance(x, y) >= 1e-12 and np.array_equal(x.astype(dtype).astype(np.float64), y):
            yield f"rounded to {name}"
    if (low := coarsened(x, y)) is not None:
        yield f"rounded to {low}"
    finite = np.isfinite(x).all() and np.isfinite(y).all()
    scale = float(np.sum(x * x))
    slack = EQUAL if _is_exact(x) and _is_exact(y) else _ROUNDED
    if finite and scale:
        c = float(np.sum(x * y)) / scale
        if distance(c * x, y) < slack < abs(c - 1) and abs(c) > 1e-6:
            yield f"times {c:.7g}"
    shift = y - x
    if finite and x.size > 1 and float(np.ptp(shift)) < EQUAL * float(np.abs(shift).max(initial=0)):
        yield f"plus {float(shift.ravel()[0]):.7g}"


def _is_exact(x: np.ndarray) -> bool:
    """Whether it holds more than float32 numbers, so that a product of it is not rounded to one."""
    return not np.array_equal(x.astype(np.float32), x)


def _along(x: np.ndarray, y: np.ndarray, axis: int) -> Iterator[str]:
    n = x.shape[axis]
    for by in (1, -1, 2, -2):
        if n > 2 and equal(np.roll(x, by, axis), y):
            yield f"shifted by {by} along axis {axis}"
    if equal(np.flip(x, axis), y):
        yield f"reversed along axis {axis}"
    if not 2 <= n <= _MOST_SLICES:
        return
    rows_x, rows_y = (np.moveaxis(v, axis, 0).reshape(n, -1) for v in (x, y))
    keys = np.random.default_rng(0).standard_normal(rows_x.shape[1])
    key_x, key_y = rows_x @ keys, rows_y @ keys
    if len(np.unique(key_x)) == n and equal(rows_x[np.argsort(key_x)], rows_y[np.argsort(key_y)]):
        yield f"with the {n} slices of axis {axis} in another order"
