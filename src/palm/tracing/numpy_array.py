"""An array of NumPy's whose operations are written down, and how arguments are taken apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from palm.tracing.numbers import as_written
from palm.tracing.operation import DTYPES

# Methods and functions whose result has the elements of the array, in another order or shape.
MOVES = ("reshape", "transpose", "swapaxes", "ravel", "flatten", "squeeze", "copy")
# Methods that do not pass through NumPy's functions.
_METHODS = (
    *MOVES,
    *("repeat", "take", "diagonal"),
    *("cumsum", "cumprod", "dot", "argsort", "argmax", "argmin", "trace", "astype", "clip", "round"),
    *("sum", "mean", "std", "var", "max", "min", "prod", "all", "any", "nonzero"),
)


# Methods that write to the array itself.
_IN_PLACE = ("sort", "fill", "put", "partition")


class Writer(Protocol):
    """Who writes operations down."""

    def operation(self, name: str, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Compute `call(*args, **kwargs)` and write it down."""

    def write(self, target: Traced, key: Any, value: Any) -> None:
        """Write `value` to a part of an array."""


# The last one is at work.
writers: list[Writer] = []


class Traced(np.ndarray):
    """An array whose operations are written down."""

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
        return writers[-1].operation(name, getattr(ufunc, method), args, kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return writers[-1].operation(func.__name__, func, args, kwargs)

    def __getitem__(self, key: Any) -> Any:
        return writers[-1].operation("index", lambda x, k: x[k], (self, key), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        writers[-1].write(self, key, value)

    @property
    def T(self) -> Any:  # noqa: N802 - NumPy's own name
        """The transposed array."""
        return writers[-1].operation("transpose", lambda x: x.T, (self,), {})

    def view(self, dtype: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Another view. One with another dtype reads bits, which only the program's own dtype has."""
        if dtype is None or (isinstance(dtype, type) and issubclass(dtype, np.ndarray)):
            return np.ndarray.view(self, dtype or type(self))

        def bits(x: np.ndarray) -> np.ndarray:
            wanted = np.dtype(dtype)
            narrow = x.astype(f"f{wanted.itemsize}") if x.dtype.kind == "f" else x
            return np.ascontiguousarray(narrow).view(wanted)

        return writers[-1].operation("bits", bits, (self,), kwargs)


def _method(name: str) -> Callable[..., Any]:
    def call(self: Traced, *args: Any, **kwargs: Any) -> Any:
        return writers[-1].operation(
            name, lambda x, *a, **k: getattr(x, name)(*a, **k), (self, *args), kwargs
        )

    return call


for _name in (*_METHODS, *_IN_PLACE):
    setattr(Traced, _name, _method(_name))


def numeric(x: np.ndarray) -> np.ndarray:
    """An array of numbers without its writer; of objects, empty."""
    plain = np.ndarray.view(x, np.ndarray)
    if plain.dtype != object:
        return plain
    try:
        return plain.astype(np.float64)
    except (TypeError, ValueError):
        return np.zeros(0)


def untraced(x: Any) -> Any:
    """An argument without its writer, in float64 where it is of a float dtype, or names one."""
    if isinstance(x, np.float32):
        return np.float64(as_written(x))
    if isinstance(x, np.ndarray):
        x = np.ndarray.view(x, np.ndarray)
        return x.astype(np.float64) if x.dtype.name in DTYPES and x.dtype != np.float64 else x
    return np.float64 if dtype_named(x) in DTYPES else x


def bare(x: Any) -> Any:
    """An argument without its writer."""
    return np.ndarray.view(x, np.ndarray) if isinstance(x, Traced) else x


def dtype_named(x: Any) -> str | None:
    """The name of the dtype that an argument is, if it is one."""
    if isinstance(x, np.dtype):
        return x.name
    return np.dtype(x).name if isinstance(x, type) and issubclass(x, np.generic) else None


def is_number(x: Any) -> bool:
    """Whether an argument is a single number."""
    return isinstance(x, (int, float, np.floating, np.integer)) and not isinstance(x, (bool, np.bool_))


def flat(tree: Any) -> Iterator[Any]:
    """The leaves of nested tuples, lists and dicts."""
    if isinstance(tree, (tuple, list, dict)):
        for x in tree.values() if isinstance(tree, dict) else tree:
            yield from flat(x)
    else:
        yield tree


def rebuilt(tree: Any, function: Callable[[Any], Any]) -> Any:
    """The same containers with `function(leaf)` in the place of each leaf."""
    if type(tree) in (tuple, list):
        return type(tree)(rebuilt(x, function) for x in tree)
    if isinstance(tree, dict):
        return {key: rebuilt(x, function) for key, x in tree.items()}
    return function(tree)
