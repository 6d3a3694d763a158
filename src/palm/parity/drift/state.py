"""What a step of training may change in place, kept and put back: whatever the objects and the framework.

No framework is imported here. What one has loaded is looked up, and what none has loaded does not occur.
"""

from __future__ import annotations

import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from palm.tracing.randomness import random_numbers

Undo = Callable[[], None]
# Code and types: a step does not train them.
_FIXED = (
    *(type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType),
    *(str, bytes, int, float, complex, type(None), np.generic, np.dtype),
)


@contextmanager
def kept(state: Any) -> Iterator[None]:
    """Afterwards `state` and all that it refers to is as before: arrays, containers, attributes, generators.

    So are the global generators of Python, NumPy and torch.
    """
    undo = [*_torch_random(), *(_undo(thing) for thing in reached(state))]
    with random_numbers():
        try:
            yield
        finally:
            for put_back in undo:
                put_back()


def reached(state: Any) -> list[Any]:
    """Every object that can change and that `state` leads to, each once, in the order of a walk."""
    found: dict[int, Any] = {}
    waiting = [state]
    while waiting:
        thing = waiting.pop()
        if id(thing) not in found and not isinstance(thing, _FIXED) and not is_jax(thing):
            found[id(thing)] = thing
            waiting += reversed(_inside(thing))
    return list(found.values())


def is_tensor(thing: Any) -> bool:
    """Whether it is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(thing, torch.Tensor)


def is_jax(thing: Any) -> bool:
    """Whether it is a JAX array."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(thing, jax.Array)


def _inside(thing: Any) -> list[Any]:
    if is_tensor(thing):
        return [thing.grad] if thing.is_leaf and thing.grad is not None else []
    if isinstance(thing, dict):
        return [*thing.keys(), *thing.values()]
    if isinstance(thing, (list, tuple, set, frozenset, deque)):
        return list(thing)
    return list(getattr(thing, "__dict__", {}).values())


def _undo(thing: Any) -> Undo:
    """What puts one object back."""
    if is_tensor(thing):
        return _undo_tensor(thing)
    if isinstance(thing, np.ndarray):
        values = thing.copy()
        return (lambda: np.copyto(thing, values)) if thing.flags.writeable else (lambda: None)
    if (generator := _undo_generator(thing)) is not None:
        return generator
    if isinstance(thing, (list, set, deque)):
        items = list(thing)
        return lambda: _refill(thing, items)
    table = thing if isinstance(thing, dict) else getattr(thing, "__dict__", {})
    entries = list(table.items())
    return lambda: _restore_entries(table, entries)


def _undo_generator(thing: Any) -> Undo | None:
    if isinstance(thing, np.random.Generator):
        position = thing.bit_generator.state
        return lambda: setattr(thing.bit_generator, "state", position)
    if isinstance(thing, random.Random):
        return _later(thing.setstate, thing.getstate())
    if hasattr(thing, "get_state") and hasattr(thing, "set_state"):  # torch.Generator, RandomState
        return _later(thing.set_state, thing.get_state())
    return None


def _undo_tensor(tensor: Any) -> Undo:
    values, grad = tensor.detach().clone(), tensor.grad if tensor.is_leaf else None

    def put_back() -> None:
        tensor.data.copy_(values)
        if tensor.is_leaf:
            tensor.grad = grad

    return put_back


def _refill(thing: Any, items: list[Any]) -> None:
    thing.clear()
    (thing.update if isinstance(thing, set) else thing.extend)(items)


def _restore_entries(table: dict[Any, Any], entries: list[tuple[Any, Any]]) -> None:
    # Keys and values may be arrays: only whether they are the same objects counts.
    if [(id(key), id(value)) for key, value in table.items()] != [(id(k), id(v)) for k, v in entries]:
        table.clear()
        for key, value in entries:
            table[key] = value


def _torch_random() -> list[Undo]:
    """What puts torch's global generators back."""
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    put_back = [_later(torch.set_rng_state, torch.get_rng_state())]
    if torch.cuda.is_initialized():
        put_back.append(_later(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    return put_back


def _later(function: Callable[[Any], Any], value: Any) -> Undo:
    return lambda: function(value)
