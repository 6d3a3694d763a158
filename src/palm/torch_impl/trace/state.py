"""What a PyTorch program holds and changes: modules, optimizers, gradients; found, promoted, put back."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from palm.tracing.scope import referred


def objects(program: Any, name: str = "", depth: int = 3) -> Iterator[tuple[str, nn.Module | Optimizer]]:
    """Modules and optimizers that a program is, closes over or reads from its globals, with their names."""
    if isinstance(program, (nn.Module, Optimizer)):
        yield name, program
        return
    if isinstance(program, functools.partial):
        for part in (program.func, *program.args, *program.keywords.values()):
            yield from objects(part, name, depth - 1)
        return
    function = inspect.unwrap(program) if callable(program) else program
    if depth and getattr(function, "__self__", None) is not None:
        yield from objects(function.__self__, "self", depth - 1)
    function = getattr(function, "__func__", function)
    if depth and inspect.isfunction(function):
        for key, value in referred(function).items():
            yield from objects(value, key, depth - 1)
    elif depth and type(program).__module__ != "builtins" and hasattr(program, "__dict__"):
        for key, value in vars(program).items():
            if isinstance(value, (nn.Module, Optimizer)):
                yield key, value


@contextmanager
def restored(held: Sequence[nn.Module | Optimizer]) -> Iterator[None]:
    """Put gradients, modes and optimizers' states back at the end. Values are put back by `promoted`."""
    modules = [m for x in held if isinstance(x, nn.Module) for m in x.modules()]
    optimizers = [x for x in held if isinstance(x, Optimizer)]
    parameters = [p for m in modules for p in m.parameters(recurse=False)]
    parameters += [p for o in optimizers for group in o.param_groups for p in group["params"]]
    grads = [(p, p.grad, p.requires_grad) for p in parameters]
    modes = [(m, m.training) for m in modules]
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
        for m, training in modes:
            m.training = training
        for optimizer, state, groups in states:
            optimizer.state.clear()
            optimizer.state.update(state)
            for group, before in zip(optimizer.param_groups, groups, strict=True):
                group.clear()
                group.update(before)


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
                storages[key] = whole.to(torch.float64, copy=True)
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
