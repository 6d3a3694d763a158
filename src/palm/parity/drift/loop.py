"""A training loop of the user's own: its weights found by name, moved by a unit, and followed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from palm.errors import WeightsError
from palm.parity.drift.state import is_jax, is_tensor, kept, reached
from palm.parity.drift.ulp import moved_by_an_ulp
from palm.spec.arrays import as_numpy

Step = Callable[[Any, Any], tuple[Any, Any]]
Weights = Callable[[Any], Mapping[str, Any]]


@dataclass(frozen=True)
class Loop:
    """`step(state, batch)` gives the new state and the loss; `weights(state)` gives the weights by name."""

    label: str
    step: Step
    weights: Weights

    def named(self, state: Any) -> dict[str, np.ndarray]:
        """The weights by name, in order of names, as arrays of their own dtype. Raises `WeightsError`."""
        given = self.weights(state)
        if not isinstance(given, Mapping) or not given or not all(isinstance(name, str) for name in given):
            raise WeightsError(
                f"weights must give a dict of the weights by name; got {_shown(given)} of {self.label}. Pass "
                "weights=, a function that picks them from the state."
            )
        found = {}
        for name, value in sorted(given.items()):
            if not _is_floating(value):
                raise WeightsError(
                    f"each weight must be an array of floating-point numbers; got {_shown(value)} for "
                    f'"{name}" of {self.label}. Leave it out of what weights= gives.'
                )
            found[name] = _array(value)
        return found

    def moved(self, state: Any, seed: int, precision: str | None) -> Any:
        """The state, each weight moved by a unit: in place where it can be, or else a new one.

        Raises `WeightsError` if `weights` computes with what is in the state, or reads it from elsewhere.
        """
        holders = _holders(state)
        marks = {float(np.ldexp(1 + i % 128 / 128, i // 128)): i for i in range(len(holders))}
        with kept(state):
            # Each array full of a number of its own: the numbers among the weights tell where they are from.
            marked = _filled(
                state, holders, [np.full(h.shape, mark) for mark, h in zip(marks, holders, strict=True)]
            )
            seen = [np.unique(array.astype(np.float64)) for array in self.named(marked).values()]
        numbers = set(np.concatenate(seen).tolist())
        if strange := sorted(numbers - set(marks)):
            raise WeightsError(
                "weights= must only pick and rearrange arrays that are in the state; got the number "
                f"{strange[0]:g} of {self.label}, while the state was filled with {len(marks)} others. Put "
                "the weights into the state, and do not compute with them."
            )
        places = {marks[number] for number in numbers}
        arrays = {str(i): _array(holders[i]) for i in sorted(places)}
        moved = moved_by_an_ulp(arrays, seed, precision)
        return _filled(state, holders, [moved.get(str(i)) for i in range(len(holders))])

    def follow(
        self, state: Any, batches: Sequence[Any], places: Mapping[str, np.ndarray]
    ) -> tuple[list[float], list[np.ndarray]]:
        """Train on every batch: the loss of each, and the followed weights before, between and after."""
        # A step may donate its arguments, so that it gets copies.
        state = _mapped(state, lambda leaf: leaf.copy())
        losses, rows = [], [self._row(state, places)]
        for batch in batches:
            given = self.step(state, batch)
            if not isinstance(given, tuple) or len(given) != 2:
                raise WeightsError(
                    f"a step must give two things, the new state and the loss; got {_shown(given)} of "
                    f"{self.label}. End it with: return state, loss."
                )
            state, loss = given
            losses.append(self._number(loss))
            rows.append(self._row(state, places))
        return losses, rows

    def _row(self, state: Any, places: Mapping[str, np.ndarray]) -> np.ndarray:
        named = self.named(state)
        return np.concatenate([named[name].ravel()[at].astype(np.float64) for name, at in places.items()])

    def _number(self, loss: Any) -> float:
        number = np.asarray(as_numpy(loss)[0])
        if number.size != 1:
            raise WeightsError(
                f"the loss of a step must be one number; got {_shown(loss)} of {self.label}. Give its mean."
            )
        return float(number.reshape(()))


def all_weights(state: Any) -> dict[str, Any]:
    """The weights of a state, if nothing else is said: of its one torch module, or all its arrays by path."""
    torch = sys.modules.get("torch")
    parts = (
        state.values() if isinstance(state, Mapping) else state if isinstance(state, (list, tuple)) else []
    )
    modules = [part for part in (state, *parts) if torch and isinstance(part, torch.nn.Module)]
    if len(modules) == 1:
        return dict(modules[0].named_parameters())
    return dict(_leaves(state, ""))


def _leaves(thing: Any, path: str) -> Iterator[tuple[str, Any]]:
    if _is_floating(thing):
        yield path or "weights", thing
        return
    if isinstance(thing, (list, tuple)):
        thing = dict(enumerate(thing)) if not hasattr(thing, "_asdict") else thing._asdict()
    elif not isinstance(thing, Mapping):
        thing = getattr(thing, "__dict__", {})
    for name, value in thing.items():
        yield from _leaves(value, f"{path}.{name}" if path else str(name))


def _holders(state: Any) -> list[Any]:
    """Every array of floating-point numbers in a state: those that are written in place, then JAX's."""
    own = [thing for thing in reached(state) if (is_tensor(thing) or isinstance(thing, np.ndarray))]
    return [thing for thing in (*own, *_jax_arrays(state)) if _is_floating(thing)]


def _filled(state: Any, holders: Sequence[Any], values: Sequence[np.ndarray | None]) -> Any:
    """The state with `values` in its arrays, where there is one."""
    table = {id(holder): value for holder, value in zip(holders, values, strict=True) if value is not None}
    for holder in holders:
        if id(holder) in table and not is_jax(holder):
            _write(holder, table[id(holder)])

    def replaced(leaf: Any) -> Any:
        value = table.get(id(leaf))
        if value is None:
            return leaf
        return sys.modules["jax"].device_put(value.astype(leaf.dtype), leaf.sharding)

    return _mapped(state, replaced)


def _write(holder: Any, value: np.ndarray) -> None:
    if is_tensor(holder):
        holder.data.copy_(sys.modules["torch"].from_numpy(value.astype(np.float64)))
    elif not holder.flags.writeable:
        raise WeightsError(
            f"an array of a state must be writeable, so that the control can start from moved weights; got a "
            f"read-only one of shape {holder.shape}. Copy it: np.array(array)."
        )
    else:
        holder[...] = value


def _jax_arrays(state: Any) -> list[Any]:
    """The JAX arrays of a state."""
    jax = sys.modules.get("jax")
    return [] if jax is None else [leaf for leaf in jax.tree.leaves(state) if is_jax(leaf)]


def _mapped(state: Any, change: Callable[[Any], Any]) -> Any:
    """The state with each of its JAX arrays changed; the very same, if it has none."""
    if not _jax_arrays(state):
        return state
    return sys.modules["jax"].tree.map(lambda leaf: change(leaf) if is_jax(leaf) else leaf, state)


def _is_floating(thing: Any) -> bool:
    if not (is_tensor(thing) or is_jax(thing) or isinstance(thing, np.ndarray)):
        return False
    try:
        ml_dtypes.finfo(_dtype(thing))
    except (ValueError, TypeError):
        return False
    return not _dtype(thing).startswith("complex")


def _dtype(array: Any) -> str:
    return str(array.dtype).removeprefix("torch.")


def _array(value: Any) -> np.ndarray:
    """An array in its own dtype: `as_numpy` widens a tensor."""
    return as_numpy(value)[0].astype(np.dtype(_dtype(value)))


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{_dtype(value)}{list(shape)}"
