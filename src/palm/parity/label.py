"""What a callable is called in a comparison."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


def label_of(function: Callable[..., Any], other: str) -> str:
    """The callable's name; of one without a name, where it is defined. Never `other`, the other side's label.

    A lambda is "function at FILE:LINE", a partial "partial of NAME", a bound method "Class.method".
    """
    label = _name(function)
    return f"{label} (your function)" if label == other else label


def _name(function: Callable[..., Any]) -> str:
    if isinstance(function, partial):
        return f"partial of {_name(function.func)}"
    name = getattr(function, "__name__", type(function).__name__)
    code = getattr(function, "__code__", None)
    if name == "<lambda>" and code is not None:
        return f"function at {Path(code.co_filename).name}:{code.co_firstlineno}"
    if hasattr(function, "__self__") and hasattr(function, "__func__"):
        return str(function.__qualname__).rpartition("<locals>.")[2]
    return str(name)
