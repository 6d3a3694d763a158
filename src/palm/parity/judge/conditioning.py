"""How much the function itself amplifies rounding: the referee run again from inputs that are moved by it.

`rounding_bound` knows sizes, not values, and allows for little amplification. A norm of few numbers, or of
numbers with a large mean, divides by what is left after they cancel; a softmax of large scores, a gradient
through either, amplify too; a sum whose terms cancel, as the gradients of a softmax do, loses what the terms
were rounded by. That is no fault of any side: the referee shows it as well. Where a side is beyond the bound,
the referee is asked in two ways. It is run with random rounding errors in each operation (`judge.noise`):
`FACTOR` times what these leave is what a right program needs (`judge.need`). And each of its weights is moved
at random by what one block rounds, sqrt(8·u² + K·w²) relative: what this moves a result by is allowed. Where
nothing is amplified both are less than the bound, which then stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial

import numpy as np

from palm.config import DType, PaLMConfig
from palm.parity.judge.need import FACTOR, precision
from palm.parity.judge.noise import noisy
from palm.spec import backward, forward
from palm.spec.arrays import Named
from palm.spec.forward import Operation, Place
from palm.spec.rounding import block_rounding, rms

# The largest of so many draws is allowed: what amplifies most does so now and then only.
DRAWS = 8
# A stream of its own: what is moved may itself be drawn by NumPy's generator with a plain seed, and moving
# numbers along themselves is no random move.
_SEED = 0x6D6F7665
# What is so many times beyond what the draws so far allow is not looked into further.
_HOPELESS = 100.0


class Conditioning:
    """What moved weights do to taps, loss and gradients of the referee; run when first asked for."""

    def __init__(self, config: PaLMConfig, weights: Named, tokens: np.ndarray) -> None:
        self._config, self._tokens = config, tokens
        self._weights = {name: np.asarray(array, np.float64) for name, array in weights.items()}
        self._run, self._noisy = cache(self._moved), cache(self._rounded)

    def bound(
        self, name: str, kind: str, exact: np.ndarray, scale: float, error: float, bound: float, dtype: DType
    ) -> float:
        """`bound`, or what the amplification of the value `name` allows of `error`; relative to `scale`."""

        def off(run: Callable[[int, DType, bool], Named], draw: int) -> float:
            value = np.asarray(run(draw, dtype, kind == "tap")[name])
            return rms(value - exact) / scale

        factor = FACTOR * precision(dtype)[1]
        bound = _allowed(lambda draw: factor * off(self._noisy, draw), error, bound)
        return _allowed(partial(off, self._run), error, bound)

    def _moved(self, draw: int, dtype: DType, is_tap: bool) -> Named:
        rng = np.random.default_rng([_SEED, draw])
        size = block_rounding(self._config, dtype, self._tokens.shape[-1])
        weights = {name: _move(array, size, rng) for name, array in self._weights.items()}
        return self._values(weights, is_tap=is_tap)

    def _rounded(self, draw: int, dtype: DType, is_tap: bool) -> Named:
        weights = noisy(self._weights, precision(dtype)[0], draw)
        return self._values(weights, is_tap=is_tap, keeps_shift=False)

    def _values(self, weights: Named, *, is_tap: bool, keeps_shift: bool = True) -> Named:
        if is_tap:
            return forward.activations(self._config, weights, self._tokens)
        with np.errstate(all="ignore"):
            loss, grads = backward.value_and_grad(
                self._config, weights, self._tokens, keeps_shift=keeps_shift
            )
        return {"loss": np.array(loss), **{f"grad:{name}": gradient for name, gradient in grads.items()}}


def of_operation(operation: Operation, at: Place, dtype: DType, error: float, bound: float) -> float:
    """`bound`, or what is allowed of `error` for the amplification of one operation.

    Its inputs are exact: what it rounds inside is in the accumulator's precision.
    """
    exact = operation(at)
    wide: DType = "float64" if dtype == "float64" else "float32"
    size = block_rounding(at.config, wide, at.tokens.shape[-1])

    def moved(draw: int) -> float:
        taps = _Moved(at.taps, size, draw)
        return rms(operation(dataclasses.replace(at, taps=taps)) - exact) / (rms(exact) or 1.0)

    return _allowed(moved, error, bound)


def _allowed(moved: Callable[[int], float], error: float, bound: float) -> float:
    for draw in range(DRAWS):
        if error <= bound or (draw and not error <= _HOPELESS * bound):
            break
        bound = max(bound, moved(draw))
    return bound


class _Moved(Mapping[str, np.ndarray]):
    """Taps of which those that are read are moved, each once."""

    def __init__(self, taps: Named, size: float, draw: int) -> None:
        self._taps, self._size = taps, size
        self._rng = np.random.default_rng([_SEED, draw])
        self._read: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._read:
            self._read[name] = _move(np.asarray(self._taps[name], np.float64), self._size, self._rng)
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._taps)

    def __len__(self) -> int:
        return len(self._taps)


def _move(x: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    return x * (1 + size * rng.standard_normal(x.shape))
