"""What every traced program can do, whatever its framework."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from palm.errors import ProbeError
from palm.tracing.operation import NOTHING, Change, Operation, Own, Run
from palm.tracing.rounding import Rounding, exact, measured


class Program(ABC):
    """A program with its inputs: it runs in float64 as often as asked, and always the same operations.

    `label`: its name for a reader. `dtype`: the one it computes in when it is not traced. `operations`: its
    values in the order in which they came to be. `outputs`: which value each output is, by the output's name.
    `first`: its first run. `recorded`: whether it cannot run again.
    """

    recorded = False

    label: str
    dtype: str
    first: Run
    operations: list[Operation]
    # Whether a run draws other random numbers than all others, which start from the process's own state.
    draws_others: bool = False
    outputs: dict[str, int]

    @abstractmethod
    def run(self, change: Change = NOTHING, values: Collection[int] = ()) -> Run:
        """Run it once more, with a change, and keep the given values."""

    def settle(self, numbers: Collection[float]) -> None:  # noqa: B027 - most know what was written
        """Take a number that was rounded to a low precision for that one of `numbers` which rounds to it."""

    @abstractmethod
    def own(self) -> Own:
        """Run it once in its own precision."""

    def rounding(self) -> Rounding:
        """The errors of its values: a run in its own precision, and some in float64 with rounding errors.

        Raises `ProbeError` if it does not run in its own precision.
        """
        if self.dtype == "float64":
            return exact(len(self.operations))
        try:
            own = self.own()
        except Exception as error:
            raise ProbeError(
                f"{self.label} must run on its inputs in {self.dtype}, as it is; it raised "
                f"{type(error).__name__}: {error}. Call it by itself on the same inputs first."
            ) from error
        return measured(self.run, own, self.first, self.operations, self.outputs, self.dtype)

    def again(self) -> Run:
        """Run it once more with other random numbers, unless it brings its own."""
        self.draws_others = True
        try:
            return self.run()
        finally:
            self.draws_others = False


def leaves(tree: Any, name: str = "") -> Mapping[str, Any]:
    """The arrays of nested containers by their path: `params.layers.0.weight`. None has no leaves."""
    if tree is None:
        return {}
    children: Mapping[Any, Any]
    if isinstance(tree, Mapping):
        children = tree
    elif isinstance(tree, (list, tuple)):
        children = dict(zip(getattr(tree, "_fields", range(len(tree))), tree, strict=True))
    elif is_dataclass(tree) and not isinstance(tree, type):
        children = {field.name: getattr(tree, field.name) for field in fields(tree)}
    else:
        return {name: tree}
    found: dict[str, Any] = {}
    for key, child in children.items():
        for path, leaf in leaves(child, f"{name}.{key}" if name else str(key)).items():
            if path in found:
                raise ProbeError(f"names must be unique; got {path} twice. Give one another key.")
            found[path] = leaf
    return found


def mapped(tree: Any, function: Any, name: str = "") -> Any:
    """The same containers with `function(name, leaf)` in the place of each leaf that is an array."""

    def child(key: Any, value: Any) -> Any:
        return mapped(value, function, f"{name}.{key}" if name else str(key))

    if isinstance(tree, Mapping):
        whole = {key: child(key, value) for key, value in tree.items()}
        try:
            return type(tree)(whole)  # type: ignore[call-arg]
        except TypeError:  # a defaultdict, say
            return whole
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(child(key, value) for key, value in zip(tree._fields, tree, strict=True)))
    if isinstance(tree, (list, tuple)):
        return type(tree)(child(key, value) for key, value in enumerate(tree))
    return function(name, tree) if hasattr(tree, "dtype") else tree


def outputs_of(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A program's outputs by name: a single one is `output`. A number, or a list of them, is an array."""
    if _is_listed(tree):
        return {prefix or "output": np.asarray(tree)}
    found = {}
    for name, leaf in leaves(tree, prefix).items():
        x = np.asarray(leaf) if isinstance(leaf, (bool, int, float, complex)) else leaf
        if hasattr(x, "dtype"):
            found[name or "output"] = x
    return found


def _is_listed(tree: Any) -> bool:
    """Whether it is what an array's `tolist` gives: lists of lists of numbers, as long as one another."""
    if not isinstance(tree, list) or not tree:
        return False
    if isinstance(tree[0], list):
        return all(_is_listed(x) and len(x) == len(tree[0]) for x in tree)
    return all(isinstance(x, (bool, int, float, complex)) for x in tree)


def checked_outputs(found: dict[str, Any], tree: Any) -> dict[str, Any]:
    """The outputs. Raises `ProbeError` if there is none."""
    if not found:
        raise ProbeError(
            f"a program must return arrays or numbers; got {type(tree).__name__}. Return what to compare."
        )
    return found
