"""Any NumPy program with its inputs, as something that runs in float64 as often as asked."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from palm.tracing.fingerprint import real
from palm.tracing.numpy_array import Traced, writers
from palm.tracing.numpy_recorder import Recorder
from palm.tracing.operation import NOTHING, Change, Kind, Own, Run
from palm.tracing.places import is_users
from palm.tracing.program import Program, checked_outputs, leaves, mapped, outputs_of
from palm.tracing.randomness import random_numbers
from palm.tracing.reachable import replaced
from palm.tracing.turns import alone
from palm.tracing.working import examined, leaf_floats

# Functions that make an array from nothing, or whose result forgets that it is traced.
_MAKERS = (
    *("arange", "linspace", "zeros", "ones", "full", "empty", "eye", "identity", "tri", "vander"),
    *(
        "array",
        "asarray",
        "asanyarray",
        "ascontiguousarray",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
    ),
)


class NumpyProgram(Program):
    """A function of NumPy arrays, with the arrays it is called on.

    Raises `ProbeError` if it computes more than `most` operations.
    """

    def __init__(
        self, program: Callable[..., Any], inputs: tuple[Any, ...], label: str, most: float = math.inf
    ) -> None:
        self.program, self.inputs, self.label, self.most = program, inputs, label, most
        self.dtype = "float64"
        self.dtype = examined(label, leaf_floats(self.own().operations), "float64")
        self.first = self.run()

    def run(self, change: Change = NOTHING, values: Collection[int] = ()) -> Run:
        """Run it once more."""
        recorder = Recorder(change, values, self.dtype, self.most)
        self.outputs, arrays = self._call(recorder)
        self.operations = recorder.operations
        return Run(np.array(recorder.fingerprints), recorder.values, arrays, recorder.samples)

    def own(self) -> Own:
        """Run it in its own precision."""
        recorder = Recorder(NOTHING, (), self.dtype, self.most, exact=False)
        outputs, _ = self._call(recorder)
        return Own(recorder.operations, recorder.samples, outputs)

    @alone()
    def _call(self, recorder: Recorder) -> tuple[dict[str, int], dict[str, np.ndarray]]:
        """Which value each output is, and the outputs."""

        def traced(kind: Kind) -> Callable[[str, Any], Traced]:
            return lambda name, x: recorder.wrapped(x, kind, name)

        given = mapped(self.inputs, traced("input"))
        for x in leaves(given).values():
            if isinstance(x, Traced):
                recorder.leaf(x)
        with replaced(self.program, traced("parameter")), _written(recorder), np.errstate(all="ignore"):
            with random_numbers(others=self.draws_others):
                results = self.program(*given)
            outputs = checked_outputs(outputs_of(results), results)
            outputs = {n: x if isinstance(x, np.ndarray) else np.asarray(x) for n, x in outputs.items()}
            indices = {name: recorder.value(x) for name, x in outputs.items()}
        return indices, {name: real(np.array(np.asarray(x))) for name, x in outputs.items()}


@contextmanager
def _written(recorder: Recorder) -> Iterator[None]:
    """While it lasts, operations are written down, also those that make arrays from nothing."""
    before = {name: getattr(np, name) for name in _MAKERS}
    unset = {
        name: before[name.replace("empty", "zeros")] for name in ("empty", "empty_like")
    }  # nobody's numbers

    def maker(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def make(*args: Any, **kwargs: Any) -> Any:
            if not is_users(sys._getframe(1).f_code.co_filename):
                return function(*args, **kwargs)
            return recorder.operation(name, unset.get(name, function), args, kwargs)

        return make

    writers.append(recorder)
    try:
        for name, function in before.items():
            setattr(np, name, maker(name, function))
        yield
    finally:
        for name, function in before.items():
            setattr(np, name, function)
        writers.pop()
