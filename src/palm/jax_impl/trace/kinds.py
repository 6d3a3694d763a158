"""What a JAX program can be: a function, a pytree that is one (Equinox), or a Flax module with its state."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

import jax
import numpy as np

from palm.jax_impl.trace.precision import is_opaque
from palm.tracing.program import checked_outputs, outputs_of


def parts_of(program: Any) -> tuple[Any, Callable[..., Any]]:
    """The arrays that a program is made of, as a tree, and a function of such a tree and the inputs.

    A function has no such arrays; what it closes over is found otherwise.
    """
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(program, nnx.Module):
        graph, state = nnx.split(program)
        return nnx.to_pure_dict(state), lambda held, *inputs: _merged(nnx, graph, state, held)(*inputs)
    linen = sys.modules.get("flax.linen")
    if linen is not None and isinstance(program, linen.Module):
        module, variables = program.unbind()
        return variables, module.apply
    if is_tree(program):
        return program, lambda held, *inputs: held(*inputs)
    return None, lambda _, *inputs: program(*inputs)


def is_tree(program: Any) -> bool:
    """Whether it is a registered pytree, such as an Equinox module, and not a plain function."""
    leaves = jax.tree.leaves(program)
    return not (len(leaves) == 1 and leaves[0] is program)


def is_array(x: Any) -> bool:
    """Whether it is an array of JAX's or NumPy's."""
    return isinstance(x, (jax.Array, np.ndarray))


def holds_arrays(x: Any) -> bool:
    """Whether it is an array, or a registered pytree with some of JAX's inside, such as a model."""
    if isinstance(x, jax.Array) or type(x) is np.ndarray:
        return True
    if isinstance(x, (dict, list, tuple, np.ndarray)) or not type(x).__module__ or hasattr(x, "__code__"):
        return False
    found = jax.tree.leaves(x)
    return is_tree(x) and any(isinstance(y, jax.Array) for y in found)


def results_of(tree: Any) -> dict[str, Any]:
    """A program's outputs by name, also of registered pytrees; of random keys their numbers.

    What has no gradient, JAX's float0, is no output. Raises `ProbeError` if there is none.
    """
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        prefix = jax.tree_util.keystr(path, simple=True, separator=".")
        for name, x in outputs_of(leaf, prefix).items():
            if x.dtype != jax.dtypes.float0:
                found[name] = jax.random.key_data(x) if is_opaque(x.dtype) else x
    return checked_outputs(found, tree)


@contextmanager
def unchanged(program: Any) -> Iterator[None]:
    """Put back the attributes of an object that is called, or whose method is."""
    target = getattr(program, "__self__", program)
    held = getattr(target, "__dict__", None)
    if not isinstance(held, dict) or isinstance(target, (type, FunctionType, ModuleType)):
        yield
        return
    before = dict(held)
    try:
        yield
    finally:
        if any(held.get(key) is not x for key, x in before.items()) or held.keys() != before.keys():
            held.clear()
            held.update(before)


def _merged(nnx: Any, graph: Any, state: Any, held: Any) -> Any:
    new = jax.tree.map(lambda x: x, state)
    nnx.replace_by_pure_dict(new, held)
    return nnx.merge(graph, new)
