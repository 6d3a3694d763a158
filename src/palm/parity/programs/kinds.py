"""Which framework a program is written for, and its trace."""

from __future__ import annotations

import functools
import inspect
import math
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Literal

import numpy as np

from palm.backends import wing
from palm.errors import ConfigError, ProbeError
from palm.tracing.numpy_program import NumpyProgram
from palm.tracing.program import Program, mapped
from palm.tracing.scope import referred

Framework = Literal["torch", "jax", "numpy"]
FRAMEWORKS: tuple[Framework, ...] = ("torch", "jax", "numpy")
# How far to follow the functions that a function calls.
_DEPTH = 4
_MOST = 50


def check_frameworks(frameworks: Any) -> None:
    """Raise `ConfigError` unless it says for each of two sides what it is written for, or None."""
    known = (None, *FRAMEWORKS)
    is_pair = isinstance(frameworks, (tuple, list)) and len(frameworks) == 2
    if not is_pair or any(x not in known for x in frameworks):
        raise ConfigError(
            f"frameworks must be two of {', '.join(FRAMEWORKS)} or None; got frameworks={frameworks!r}. Say "
            'it for both sides: frameworks=("torch", "jax").'
        )


def traced_program(
    program: Callable[..., Any],
    inputs: tuple[Any, ...],
    *,
    label: str,
    framework: Framework | None = None,
    most: float = math.inf,
) -> Program:
    """A program with its inputs, run once.

    Raises `ProbeError` if it fails, if its framework is not known, or if it is a NumPy program of more than
    `most` operations: one that loops over elements in Python.
    """
    arrays = tuple(mapped(value, lambda _, x: _numpy(x)) for value in inputs)
    if framework is not None:
        return _traced(program, arrays, label, framework, most)
    framework = framework_of(program, arrays)
    try:
        return _traced(program, arrays, label, framework, most)
    except ProbeError as error:
        # What a function calls may be hidden from us, behind another module say.
        for other in ("jax", "torch") if framework == "numpy" and _failed(error) else ():
            if other in sys.modules:
                with suppress(ProbeError):
                    return _traced(program, arrays, label, other, most)
        raise


def _traced(
    program: Callable[..., Any], arrays: tuple[Any, ...], label: str, framework: Framework, most: float
) -> Program:
    try:
        if framework == "numpy":
            return NumpyProgram(program, arrays, label, most)
        return wing(framework).trace_program(program, arrays, label)
    except ProbeError:
        raise
    except Exception as error:
        raise ProbeError(
            f"{label} must run on its inputs, in float64 too, as a program of {framework}'s; it raised "
            f"{type(error).__name__}: {error}. Call it by itself on the same inputs first. If it fixes a "
            "dtype, let it take that of its inputs. If it is of another framework, say so: frameworks=(…, …)."
        ) from error


def _failed(error: ProbeError) -> bool:
    """Whether the program itself raised it, and palm did not refuse the program."""
    return error.__cause__ is not None


def framework_of(program: Any, inputs: tuple[Any, ...]) -> Framework:
    """The framework that a program is written for, from what it is, holds, calls, and what it takes."""
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and isinstance(program, torch.nn.Module):
        return "torch"
    if jax is not None and _is_pytree(program, jax):
        return "jax"
    found = set(_mentioned(program, 0, set()))
    holds = {framework for framework, is_array in found if is_array} or {framework for framework, _ in found}
    if len(holds) == 2:
        raise ProbeError(
            f"program must be written for one framework; got {_name(program)}, which uses torch and jax. "
            'Say which one: frameworks=("torch", "jax").'
        )
    if holds == {"jax"} and ("jax", True) not in found and not _takes_tracers(program, inputs, jax):
        return "numpy"  # it only mentions JAX
    return next(iter(holds), "numpy")


def _takes_tracers(program: Any, inputs: tuple[Any, ...], jax: Any) -> bool:
    """Whether JAX can trace it; what calls NumPy on its inputs cannot be."""
    try:
        with jax.enable_x64(True):
            jax.eval_shape(program, *inputs)
    except jax.errors.TracerArrayConversionError:
        return False
    except Exception:  # its own error is told when it is traced
        return True
    return True


def _mentioned(value: Any, depth: int, seen: set[int]) -> Iterator[tuple[Literal["torch", "jax"], bool]]:
    """The frameworks of what a function refers to, and of what it calls; and whether it is no mere module."""
    if depth > _DEPTH or id(value) in seen:
        return
    seen.add(id(value))
    module = isinstance(value, types.ModuleType)
    names = [value.__name__] if module else [c.__module__ for c in type(value).__mro__]
    roots = {name.partition(".")[0] for name in names}
    if "torch" in roots:
        yield "torch", not module and not isinstance(value, types.FunctionType)
    if roots & {"jax", "jaxlib", "equinox", "flax"}:
        yield "jax", not module and not isinstance(value, types.FunctionType)
    if not module:
        for held in _held(value):
            yield from _mentioned(held, depth + 1, seen)


def _held(value: Any) -> Iterator[Any]:
    """What an object refers to that may tell its framework."""
    function = inspect.unwrap(value) if callable(value) and not isinstance(value, type) else value
    if isinstance(function, functools.partial):
        yield function.func
    elif isinstance(function, types.MethodType):
        yield from (function.__func__, function.__self__)
    elif isinstance(function, types.FunctionType):
        yield from referred(function).values()
    elif isinstance(value, dict):
        yield from list(value.values())[:_MOST]
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from (f for f in vars(type(value)).values() if isinstance(f, types.FunctionType))
        yield getattr(value, "__dict__", None)


def _is_pytree(program: Any, jax: Any) -> bool:
    found = jax.tree.leaves(program)
    return not (len(found) == 1 and found[0] is program) and any(isinstance(x, jax.Array) for x in found)


def _numpy(x: Any) -> np.ndarray:
    """An array of any framework as NumPy's."""
    if str(getattr(x, "dtype", "")).startswith("key<"):
        raise ProbeError(
            "inputs must be numbers; got random keys. Pass jax.random.key_data(key), and wrap it inside."
        )
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        return np.asarray(x.float().numpy() if str(x.dtype) == "torch.bfloat16" else x.numpy())
    return np.asarray(x)


def _name(program: Any) -> str:
    return getattr(program, "__qualname__", None) or type(program).__qualname__
