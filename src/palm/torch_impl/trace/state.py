"""What a PyTorch program holds and changes: modules, optimizers, gradients; found, promoted, put back."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from palm.tracing.scope import referred

# How far to follow what a program refers to.
_DEPTH = 4


def objects(program: Any) -> dict[str, Any]:
    """Modules, optimizers and other objects that a program is, holds or refers to, with their names."""
    found: dict[str, Any] = {}
    _find(program, "", _DEPTH, found, set())
    return found


def _find(value: Any, name: str, depth: int, found: dict[str, Any], seen: set[int]) -> None:
    """Add to `found` what `value` is and refers to."""
    if id(value) in seen or isinstance(value, (Tensor, type, types.ModuleType)):
        return
    seen.add(id(value))
    if isinstance(value, (nn.Module, Optimizer)):
        found[name] = value
        return
    for key, child in _referred(value):
        if depth:
            _find(child, key or name, depth - 1, found, seen)
    if hasattr(value, "__dict__") and not callable(value):
        found[name] = value


def _referred(value: Any) -> Iterable[tuple[str, Any]]:
    """What an object refers to, by name."""
    if isinstance(value, functools.partial):
        return [("", part) for part in (value.func, *value.args, *value.keywords.values())]
    if isinstance(value, (list, tuple)):
        return [(str(i), x) for i, x in enumerate(value)]
    if isinstance(value, dict):
        return [(str(key), x) for key, x in value.items()]
    function = inspect.unwrap(value) if callable(value) else value
    if isinstance(function, types.MethodType):
        return [("self", function.__self__), ("", function.__func__)]
    if isinstance(function, types.FunctionType):
        return referred(function).items()
    return () if type(value).__module__ == "builtins" else getattr(value, "__dict__", {}).items()


@contextmanager
def restored(held: Sequence[Any]) -> Iterator[None]:
    """Put gradients, attributes and optimizers' states back at the end. `promoted` does it for values."""
    modules = [m for x in held if isinstance(x, nn.Module) for m in x.modules()]
    optimizers = [x for x in held if isinstance(x, Optimizer)]
    parameters = [p for m in modules for p in m.parameters(recurse=False)]
    parameters += [p for o in optimizers for group in o.param_groups for p in group["params"]]
    grads = [(p, p.grad, p.requires_grad) for p in parameters]
    contents = [_contents(x) for x in (*modules, *held) if not isinstance(x, Optimizer)]
    states = [
        (o, {p: dict(s) for p, s in o.state.items()}, [dict(g) for g in o.param_groups]) for o in optimizers
    ]
    try:
        yield
    finally:
        for p, grad, requires in grads:
            p.grad = None
            p.grad = grad
            p.requires_grad_(requires)
        for own, before in (pair for content in contents for pair in content):
            own.clear()
            own.update(before)
        for optimizer, state, groups in states:
            optimizer.state.clear()
            optimizer.state.update(state)
            for group, before in zip(optimizer.param_groups, groups, strict=True):
                group.clear()
                group.update(before)


def _contents(x: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The dicts that hold an object's attributes; of a module, also its tensors and modules. With copies."""
    inner = [vars(x).get(name) for name in ("_parameters", "_buffers", "_modules")]
    return [(own, dict(own)) for own in (vars(x), *inner) if isinstance(own, dict)]


@contextmanager
def promoted(holds: Sequence[Tensor]) -> Iterator[None]:
    """What the program holds, in float64 in the same objects; as before, with its values, afterwards."""
    storages: dict[int, Tensor] = {}
    before = [(x, x.data, x.grad) for x in holds]
    try:
        for x, data, grad in before:
            storage = data.untyped_storage()
            key = storage.data_ptr()
            if key not in storages:
                whole = torch.empty(0, dtype=data.dtype, device=data.device).set_(storage)
                wide = torch.complex128 if data.is_complex() else torch.float64
                storages[key] = whole.to(wide, copy=True)
            if grad is not None:
                x.grad = None
            x.data = storages[key].as_strided(data.size(), data.stride(), data.storage_offset())
            if grad is not None and x.is_floating_point():
                x.grad = grad.double()
        yield
    finally:
        for x, data, grad in before:
            x.grad = None
            x.data = data
            x.grad = grad
