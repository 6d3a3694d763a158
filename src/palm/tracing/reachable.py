"""The arrays that a Python function holds: in its closure, its globals, and in the objects it reaches."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np

from palm.tracing.scope import referred

# How far to follow attributes and containers.
_DEPTH = 6
_LEAVES = (
    str,
    bytes,
    int,
    float,
    complex,
    bool,
    type(None),
    type,
    types.ModuleType,
    np.dtype,
    np.random.Generator,
)


@contextmanager
def replaced(
    program: Any, replace: Callable[[str, Any], Any], is_array: Callable[[Any], bool] | None = None
) -> Iterator[None]:
    """While it lasts, `replace(name, array)` stands in the place of each array that `program` holds.

    `is_array` tells what an array is: by default, a plain one of NumPy's.
    """
    with ExitStack() as undo:
        _Walk(replace, undo, is_array or (lambda x: type(x) is np.ndarray)).visit(program, "", 0)
        yield


class _Walk:
    def __init__(
        self, replace: Callable[[str, Any], Any], undo: ExitStack, is_array: Callable[[Any], bool]
    ) -> None:
        self.replace, self.undo, self.is_array = replace, undo, is_array
        self.seen: set[int] = set()
        self.done: dict[int, tuple[Any, Any]] = {}

    def visit(self, value: Any, name: str, depth: int) -> Any:
        """What stands in the place of `value`: itself, unless it is an array or a tuple of some."""
        if self.is_array(value):
            if id(value) not in self.done:
                self.done[id(value)] = (value, self.replace(name, value))
            return self.done[id(value)][1]
        if isinstance(value, _LEAVES) or depth > _DEPTH:
            return value
        if isinstance(value, tuple) and type(value) is tuple:
            found = tuple(self.visit(x, f"{name}.{i}", depth + 1) for i, x in enumerate(value))
            return found if any(a is not b for a, b in zip(found, value, strict=True)) else value
        if id(value) in self.seen:
            return value
        self.seen.add(id(value))
        for key, child, put in self.slots(value):
            path = f"{name}.{key}" if name else str(key)
            found = self.visit(child, path, depth + 1)
            if found is not child:
                put(found)
                self.undo.callback(put, child)
        return value

    def slots(self, value: Any) -> Iterator[tuple[Any, Any, Callable[[Any], None]]]:
        """What `value` refers to, and how to put another thing there."""
        if isinstance(value, dict):
            for key in list(value):
                yield key, value[key], partial(value.__setitem__, key)
        elif isinstance(value, list):
            for i, x in enumerate(value):
                yield i, x, partial(value.__setitem__, i)
        elif isinstance(value, types.FunctionType):
            yield from _of_function(value)
        elif isinstance(value, types.MethodType):
            yield "", value.__self__, lambda _: None
            yield "", value.__func__, lambda _: None
        elif isinstance(getattr(value, "__dict__", None), dict):
            held = vars(value)
            for key in list(held):
                yield key, held[key], partial(held.__setitem__, key)
            yield "", type(value).__dict__.get("__call__"), lambda _: None


def _of_function(function: types.FunctionType) -> Iterator[tuple[Any, Any, Callable[[Any], None]]]:
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    for name, value in referred(function).items():
        if name in cells:
            yield name, value, partial(setattr, cells[name], "cell_contents")
        else:
            yield name, value, partial(function.__globals__.__setitem__, name)
    for i, x in enumerate(function.__defaults__ or ()):
        yield i, x, lambda _: None
