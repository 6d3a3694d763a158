"""Writes down every operation of a NumPy program, computed in float64."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from palm.errors import ProbeError
from palm.tracing.fingerprint import NONE, of_array, real
from palm.tracing.numpy_array import (
    MOVES,
    Traced,
    bare,
    dtype_named,
    flat,
    is_number,
    numeric,
    rebuilt,
    untraced,
)
from palm.tracing.operation import DTYPES, Change, Kind, Operation
from palm.tracing.places import place_of
from palm.tracing.rounding import disturbed
from palm.tracing.sample import EXACT, rounded, sampled

_MOVES = {
    *MOVES,
    *("expand_dims", "moveaxis", "rollaxis", "broadcast_to", "flip", "atleast_1d", "atleast_2d"),
}
_LOW = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}


class Recorder:
    """One run. `names`: of the arrays that the program is known to have, by id: array, kind, name, dtype.

    `most`: more operations than that raise `ProbeError`. `exact` computes in float64 what the program asks
    for in less.
    """

    def __init__(
        self,
        change: Change,
        keep: Collection[int],
        working: str,
        most: float = math.inf,
        *,
        exact: bool = True,
    ) -> None:
        self.change, self.keep, self.working, self.most = change, set(keep), working, most
        self.exact, self.argument = exact, untraced if exact else bare
        self.names: dict[int, tuple[Any, Kind, str, str]] = {}
        self.operations: list[Operation] = []
        self.fingerprints: list[np.ndarray] = []
        self.samples: list[np.ndarray] = []
        self.values: dict[int, np.ndarray] = {}
        # Which value an array is: by the array itself, or, where NumPy made another one of it, by its memory.
        self.known: dict[int, tuple[Any, int]] = {}
        self.stored: dict[Any, int] = {}
        self.written: dict[int, int] = {}  # memory: the operation that wrote to it last

    def wrapped(self, x: Any, kind: Kind, name: str) -> Traced:
        """An array that the program is given or holds, traced."""
        own = np.asarray(x)
        promoted = np.float64 if self.exact and own.dtype.name in DTYPES else None
        found = np.ndarray.view(np.array(own, promoted), Traced)
        self.names[id(found)] = (found, kind, name, own.dtype.name)
        return found

    def value(self, x: np.ndarray) -> int:
        """Which value an array is. One that was not seen before is something the program holds."""
        found = self.known.get(id(x))
        index = found[1] if found is not None and found[0] is x else self.stored.get(_where(x))
        index = self.leaf(x) if index is None else index
        writer = self.written.get(_memory(x), -1)
        if writer > index:  # it was written to, through another view
            place = place_of(sys._getframe(2))
            op = Operation("written", "operation", x.shape, x.dtype.name, place, inputs=(index, writer))
            index = self.add(x, op)
        return index

    def leaf(self, x: np.ndarray) -> int:
        """Write down what the program was given or holds, moved by its rounding if asked."""
        _, kind, name, dtype = self.names.get(id(x), (x, "constant", "", x.dtype.name))
        scale = self.change.scale.get(len(self.operations))
        if scale is not None and x.dtype.kind == "f":
            own = np.ndarray.view(x, np.ndarray)
            own[...] *= disturbed(len(self.operations), scale, own)
        place = None if kind == "input" else place_of(sys._getframe(2))
        return self.add(x, Operation(kind, kind, x.shape, dtype, place, name))

    def add(self, x: np.ndarray, operation: Operation) -> int:
        """Write down a value."""
        index = len(self.operations)
        if index >= self.most:
            raise ProbeError(f"the program must compute at most {self.most:,} operations; got more of them.")
        self.operations.append(operation)
        numbers = numeric(x)
        aligned = self.exact and self.change.asks(index)
        self.fingerprints.append(of_array(numbers) if aligned else NONE)
        self.samples.append(sampled(numbers))
        if index in self.keep:
            self.values[index] = np.array(real(numbers))
        self.known[id(x)] = (x, index)
        self.stored[_where(x)] = index
        return index

    def operation(self, name: str, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Compute an operation in float64 and write it down."""
        given = [x for x in flat((args, kwargs)) if isinstance(x, np.ndarray)]
        arrays = [x for x in given if x.dtype != object or isinstance(x, Traced)]
        inputs = tuple(dict.fromkeys(self.value(x) for x in arrays))
        asked = [dtype for x in flat((args, kwargs)) if (dtype := dtype_named(x)) in DTYPES]
        low = [dtype for dtype in asked if DTYPES[dtype] > DTYPES[self.working]]
        numbers = tuple(float(untraced(x)) for x in flat((args, kwargs)) if is_number(x))
        targets = [x for x in flat(kwargs.get("out", ())) if isinstance(x, Traced)]
        args, kwargs = rebuilt((args, kwargs), self.argument)
        if (others := self.change.constants.get(len(self.operations))) is not None:
            put = iter(others)
            args, kwargs = rebuilt((args, kwargs), lambda x: type(x)(next(put)) if is_number(x) else x)
        out = call(*args, **kwargs)
        if out is None and arrays and not targets:  # it wrote to its first argument
            targets = [x for x in arrays[:1] if isinstance(x, Traced)]
        if targets:
            return self.wrote(name, targets, inputs, numbers)
        if not isinstance(out, (np.ndarray, np.generic, tuple, list)):
            return out
        moves = name in _MOVES and len(inputs) == 1 and not low
        about = {"inputs": inputs, "constants": numbers, "moves": moves, "rounds": low[0] if low else ""}
        if isinstance(out, (tuple, list)):
            found = [self.result(name, x, about) for x in out]
            return type(out)(*found) if hasattr(out, "_fields") else type(out)(found)
        return self.result(name, out, about)

    def result(self, name: str, x: Any, about: Mapping[str, Any]) -> Any:
        """Write down what an operation gave, or what is put in its place."""
        array = np.asarray(x)
        if array.dtype.kind not in "fiubcO":
            return x
        if self.exact and about["rounds"] and array.dtype.kind == "f":
            array = array.astype(_LOW[about["rounds"]])
        if self.exact and array.dtype.name in DTYPES:
            array = array.astype(np.float64, copy=False)
        index = len(self.operations)
        if index in self.change.values:
            array = np.array(self.change.values[index], array.dtype).reshape(array.shape)
        array = self.rounded(array, index)
        traced = np.ndarray.view(array, Traced)
        place = place_of(sys._getframe(2))
        self.add(traced, Operation(name, "operation", array.shape, array.dtype.name, place, **about))
        return traced

    def rounded(self, x: np.ndarray, index: int) -> np.ndarray:
        """What an operation gave, rounded if this run is to see what that does."""
        noise = self.change.noise
        if noise is None or x.dtype != np.float64 or noise.bits[index] == EXACT:
            return x
        return np.asarray(rounded(x, int(noise.bits[index]), noise.factor, np))

    def wrote(
        self, name: str, targets: list[Traced], inputs: tuple[int, ...], constants: tuple[float, ...]
    ) -> Any:
        """Write down what arrays hold that were written to, or what is put in its place."""
        place = place_of(sys._getframe(3))
        for x in targets:
            index = len(self.operations)
            if index in self.change.values:
                np.ndarray.view(x, np.ndarray)[...] = self.change.values[index].reshape(x.shape)
            if self.change.noise is not None:
                np.ndarray.view(x, np.ndarray)[...] = self.rounded(bare(x), index)
            op = Operation(
                *(name, "operation", x.shape, x.dtype.name, place), inputs=inputs, constants=constants
            )
            self.add(x, op)
            self.written[_memory(x)] = index
        return targets[0] if len(targets) == 1 else tuple(targets)

    def write(self, target: Traced, key: Any, value: Any) -> None:
        """Write to a part of an array, and write that down."""
        given = [target, *(x for x in flat((key, value)) if isinstance(x, np.ndarray))]
        inputs = tuple(dict.fromkeys(self.value(x) for x in given))
        np.ndarray.view(target, np.ndarray)[rebuilt(key, self.argument)] = rebuilt(value, self.argument)
        self.wrote("write", [target], inputs, ())


def _memory(x: np.ndarray) -> int:
    """Equal for all views of the same memory."""
    while isinstance(x.base, np.ndarray):
        x = x.base
    return int(x.__array_interface__["data"][0])


def _where(x: np.ndarray) -> Any:
    return (x.__array_interface__["data"][0], x.shape, x.strides, x.dtype.str)
