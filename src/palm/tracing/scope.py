"""What a Python function refers to by name: its globals and the variables it closes over."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator
from typing import Any


def referred(function: types.FunctionType) -> dict[str, Any]:
    """The values by name, of the function and of those inside it. `nn` of `jax.nn` is no such name."""
    names = set(_globals_of(function.__code__))
    found = {name: function.__globals__[name] for name in names & function.__globals__.keys()}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not yet filled
            continue
    return found


def _globals_of(code: types.CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _globals_of(inner)
