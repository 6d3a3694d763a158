"""Monte Carlo arithmetic: the referee with random rounding errors of a precision in each of its operations.

A machine rounds to its own grid of numbers. The same machine with a grid c times as fine or coarse, c drawn
at random from [1, 2) for each operation, makes other errors of the same size: x becomes round(c·x) / c. As in
the machine, equal numbers have equal errors, which add up where rows are alike. A sum of K terms, formed in
parts, has the error of its partial sums besides. So a run of the referee with this noise is off by what
rounding leaves of a right program on these weights and tokens, whatever the function cancels or amplifies,
and each draw is another right program. Source: Parker, "Monte Carlo arithmetic" (UCSC-CRL-97-02, 1997).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from palm.spec.arrays import Named

# A stream of its own: what is moved may itself be drawn by NumPy's generator with a plain seed.
_SEED = 0x6D6F7665
# Partial sums that run beside each other in a matrix product.
_LANES = 16
# What gives one of its inputs, or its sign, as it is.
_EXACT = (np.maximum, np.minimum, np.negative, np.absolute, np.conjugate, np.positive)


@dataclass(frozen=True)
class Precision:
    """Unit roundoffs of a program: of what is stored between operations, and inside of them.

    A program in bfloat16 that computes norms, softmax and rotations in float32 has float32's inside; one that
    upcasts nothing has bfloat16's. `sums`: of the accumulator. All are powers of two well above float64's
    own, or 0; errors are proportional to them.
    """

    stored: float
    inside: float
    sums: float


class _Noise:
    """Draws errors. `precision` says of what size."""

    def __init__(self, precision: Precision, draw: int) -> None:
        self.precision = precision
        self._rng = np.random.default_rng([_SEED, draw])

    def on(self, x: np.ndarray, size: float) -> np.ndarray:
        """x rounded to unit roundoff `size`, on another grid."""
        if size == 0.0:
            return x
        grid = self._rng.uniform(1.0, 2.0)
        steps, exponent = _steps(np.asarray(x) * grid, size)
        return np.ldexp(np.rint(steps), exponent) / grid

    def of_sum(self, total: np.ndarray, squares: np.ndarray, terms: int) -> np.ndarray:
        """A sum with the error of its partial sums. `squares`: the sum of its terms' squares.

        Added in pairs, terms of one sign leave twice the sum's own rounding, terms of random sign one
        rounding of √squares for each level; added one after the other in lanes, K / (2·lanes) of them.
        """
        unit = self.precision.sums
        if unit == 0.0:
            return total
        levels = math.log2(max(terms, 2)) + terms / (2 * _LANES)
        steps, _ = _steps(total * self._rng.uniform(1.0, 2.0), unit)
        # Of equal sums equal too: what is left of them below the last digit.
        error = 2 * (steps - np.floor(steps)) - 1
        return total + unit * np.sqrt(2 * np.square(total) + levels * squares) * error


def _steps(x: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """x in units of the last digit of a number with unit roundoff `size`, and the exponent of that digit."""
    bits = round(-math.log2(size))
    mantissa, exponent = np.frexp(x)
    return np.ldexp(mantissa, bits), exponent - bits


class _Noisy(np.ndarray):
    """A float64 array each of whose operations has rounding errors of `noise`; `is_stored`: it has them."""

    noise: _Noise
    is_stored: bool

    def __array_finalize__(self, made_from: Any) -> None:
        if isinstance(made_from, _Noisy):
            self.noise, self.is_stored = made_from.noise, made_from.is_stored

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        noise = next(x.noise for x in (*inputs, *(options.get("out") or ())) if isinstance(x, _Noisy))
        given = [_plain(x) for x in inputs]
        if ufunc is np.matmul:  # it reads what is stored
            given = [_stored(x, noise) for x in inputs]
        into = options.pop("out", None)
        made = _made(noise, ufunc, method, given, options)
        if into is not None:
            _plain(into[0])[...] = made
            return into[0]
        if not isinstance(made, (np.ndarray, np.floating)) or np.asarray(made).dtype != np.float64:
            return made
        return _noisy(np.asarray(made), noise, is_stored=ufunc is np.matmul)


def _plain(x: Any) -> Any:
    return x.view(np.ndarray) if isinstance(x, _Noisy) else x


def _stored(x: Any, noise: _Noise) -> np.ndarray:
    plain: np.ndarray = _plain(x)
    return plain if isinstance(x, _Noisy) and x.is_stored else noise.on(plain, noise.precision.stored)


def _made(noise: _Noise, ufunc: np.ufunc, method: str, given: list[Any], options: dict[str, Any]) -> Any:
    precision = noise.precision
    if ufunc is np.matmul:
        a, b = given
        total = noise.of_sum(a @ b, np.square(a) @ np.square(b), a.shape[-1])
        return noise.on(total, precision.stored)
    made = getattr(ufunc, method)(*given, **options)
    if ufunc is np.add and method == "reduce":
        squares = np.add.reduce(np.square(given[0]), **options)
        terms = given[0].size // max(np.size(made), 1)
        return noise.of_sum(np.asarray(made), squares, terms)
    if method != "__call__" or ufunc in _EXACT or np.asarray(made).dtype != np.float64:
        return made
    # What is added up elementwise is the residual stream, or its gradient: it is stored.
    is_stored = ufunc is np.add and np.shape(given[0]) == np.shape(given[1])
    return noise.on(made, precision.stored if is_stored else precision.inside)


def _noisy(array: np.ndarray, noise: _Noise, *, is_stored: bool) -> np.ndarray:
    made = array.view(_Noisy)
    made.noise, made.is_stored = noise, is_stored
    return made


def noisy(weights: Named, precision: Precision, draw: int) -> Mapping[str, np.ndarray]:
    """The weights in float64, as arrays all of whose operations round to `precision`; `draw` is the seed."""
    noise = _Noise(precision, draw)
    return {
        name: _noisy(np.array(array, np.float64), noise, is_stored=True) for name, array in weights.items()
    }
