"""Any JAX program with its inputs, as something that runs in float64 as often as asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from palm.jax_impl.trace.evaluate import Runner, Value
from palm.jax_impl.trace.inner import Scope, all_of, draws, held_by, read_as, single_numbers
from palm.jax_impl.trace.kinds import holds_arrays, is_array, parts_of, results_of, unchanged
from palm.jax_impl.trace.precision import is_float, is_opaque, wide
from palm.tracing.fingerprint import real
from palm.tracing.numbers import settled
from palm.tracing.operation import NOTHING, Change, Kind, Own, Run, with_places
from palm.tracing.program import Program, mapped
from palm.tracing.randomness import random_numbers
from palm.tracing.reachable import replaced
from palm.tracing.turns import alone
from palm.tracing.working import examined, used_as


def trace_program(program: Callable[..., Any], inputs: tuple[Any, ...], label: str) -> Program:
    """The trace of a JAX function, an Equinox module, or a Flax module with its state, on NumPy inputs."""
    return TracedProgram(program, inputs, label)


class TracedProgram(Program):
    """A jaxpr in float64 and its arrays."""

    def __init__(self, program: Callable[..., Any], inputs: tuple[Any, ...], label: str) -> None:
        self.label = label
        self._memo: dict[Any, Any] = {}
        self._numbers: tuple[float, ...] = ()
        self._closed_over: dict[int, tuple[Any, str, str]] = {}
        self._promoted: dict[int, tuple[Any, Any]] = {}
        tree, call = parts_of(program)
        paths, structure = jax.tree_util.tree_flatten_with_path(tree)
        held = {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in paths}
        given: dict[str, np.ndarray] = {}
        mapped(inputs, lambda name, x: given.setdefault(name, np.asarray(x)))
        arrays = {name: x for name, x in held.items() if is_array(x)}
        self._leaves: list[tuple[Kind, str, Any]] = [
            *(("parameter", name, arrays[name]) for name in sorted(arrays)),
            *(("input", name, given[name]) for name in sorted(given)),
        ]
        self._names: list[str] = []

        def run(of_arrays: dict[str, Any], of_inputs: dict[str, Any]) -> list[Any]:
            whole = jax.tree.unflatten(structure, [of_arrays.get(name, x) for name, x in held.items()])
            found = results_of(call(whole, *mapped(inputs, lambda name, _: of_inputs[name])))
            self._names = list(found)
            return list(found.values())

        self._make = partial(self._jaxpr, program, run, arrays, given)
        self._closed = self._traced()
        self.dtype = examined(label, self._floats())
        self.first = self.run()

    def _traced(self) -> Any:
        """The jaxpr in float64, or in the program's own dtypes if it fixes some that must be equal.

        Also if it draws: JAX draws other numbers in float64.
        """
        try:
            closed = self._make(promoted=True)
            if not any(draws(eqn) for one in all_of(closed) for eqn in one.jaxpr.eqns):
                return closed
        except (TypeError, ValueError):
            pass
        self._closed_over.clear()
        return self._make(promoted=False)

    @alone()
    def _jaxpr(
        self,
        program: Any,
        run: Any,
        arrays: dict[str, Any],
        given: dict[str, Any],
        *,
        promoted: bool,
    ) -> Any:
        """The jaxpr. Its arguments are flattened in the order of their sorted names."""

        def own(x: Any) -> Any:
            return x.dtype if is_opaque(x.dtype) else jax.dtypes.canonicalize_dtype(x.dtype)

        def spec(held: dict[str, Any]) -> dict[str, Any]:
            return {
                name: jax.ShapeDtypeStruct(np.shape(x), np.float64 if promoted and is_float(x) else own(x))
                for name, x in held.items()
            }

        held = self._widened if promoted else _copied
        with (
            jax.enable_x64(True) if promoted else nullcontext(),
            random_numbers(others=self.draws_others),
            unchanged(program),
            replaced(program, held, holds_arrays),
        ):
            # Make it anew: what the program has become in the meantime counts.
            return jax.make_jaxpr(partial(run))(spec(arrays), spec(given))

    def _widened(self, name: str, held: Any) -> Any:
        """What the program closes over, in float64: numbers beside it are then as precise as written."""
        if type(held) is np.ndarray:
            return _copied(name, held)

        def one(path: Any, x: Any) -> Any:
            if not is_array(x) or not is_float(x):
                return x
            before = self._promoted.get(id(x), (None, None))
            promoted = before[1] if before[0] is x else jnp.asarray(x, np.float64)
            self._promoted[id(x)] = (x, promoted)
            own = jax.tree_util.keystr(path, simple=True, separator=".")
            self._closed_over[id(promoted)] = (promoted, f"{name}.{own}" if own else name, str(x.dtype))
            return promoted

        return jax.tree_util.tree_map_with_path(one, held)

    def _floats(self) -> Iterator[tuple[str, int]]:
        """The dtype that each leaf counts as, and its number of elements."""
        for (kind, _, x), var in zip(self._leaves, self._closed.jaxpr.invars, strict=True):
            if is_float(x):
                read = read_as(self._closed.jaxpr, var) if kind == "input" else ()
                yield used_as(str(x.dtype), read), np.size(x)
        for c in held_by(self._closed):
            if hasattr(c, "dtype") and is_float(c):
                yield self._own_dtype(c), np.size(c)

    def _own_dtype(self, x: Any) -> str:
        _, _, dtype = self._closed_over.get(id(x), (x, "", str(x.dtype)))
        return dtype

    def _const(self, runner: Runner, c: Any) -> Value:
        _, name, dtype = self._closed_over.get(id(c), (c, "", str(getattr(c, "dtype", ""))))
        held = wide(jnp.asarray(c), self._numbers) if runner.exact else jnp.asarray(c)
        return runner.leaf(held, "parameter" if name else "constant", name, dtype)

    def run(self, change: Change = NOTHING, values: Collection[int] = ()) -> Run:
        """Run it once more."""
        with jax.enable_x64(True):
            runner, found = self._evaluated(self._closed, change, values, exact=True)
            arrays = {name: real(np.asarray(value.array)) for name, value in found.items()}
        self.outputs = {name: value.index for name, value in found.items()}
        self.operations = with_places(runner.operations)
        return Run(np.array(runner.fingerprints), runner.values, arrays, runner.samples)

    def again(self) -> Run:
        """Trace and run it once more with other random numbers, unless it brings its own."""
        held, memo = dict(self._closed_over), self._memo
        self.draws_others, self._memo = True, {}
        try:
            closed = self._traced()
            with jax.enable_x64(True):
                runner, _ = self._evaluated(closed, NOTHING, (), exact=True)
            return Run(np.array(runner.fingerprints), {}, {})
        finally:
            self.draws_others, self._memo, self._closed_over = False, memo, held

    def settle(self, numbers: Collection[float]) -> None:
        """Take a number that was rounded to a low precision for that one of `numbers` which rounds to it."""
        before, self._numbers = self._numbers, tuple(numbers)
        if any(settled(x, numbers) != settled(x, before) for x in single_numbers(self._closed)):
            self._memo.clear()
            self.first = self.run()

    def own(self) -> Own:
        """Run it in its own precision."""
        runner, found = self._evaluated(self._make(promoted=False), NOTHING, (), exact=False)
        return Own(runner.operations, runner.samples, {name: value.index for name, value in found.items()})

    def _evaluated(
        self, closed: Any, change: Change, values: Collection[int], *, exact: bool
    ) -> tuple[Runner, dict[str, Value]]:
        """A run of a jaxpr, and its outputs."""
        runner = Runner(
            *(change, values),
            working=self.dtype,
            memo=self._memo if exact else {},
            const=self._const,
            exact=exact,
            numbers=self._numbers,
        )
        leaves = [
            runner.leaf(_as_traced(x, v.aval, exact=exact), kind, name, str(x.dtype))
            for (kind, name, x), v in zip(self._leaves, closed.jaxpr.invars, strict=True)
        ]
        consts = [self._const(runner, c) for c in closed.consts]
        found = runner.evaluate(closed.jaxpr, consts, leaves, Scope(None, fixed=False))
        return runner, dict(zip(self._names, found, strict=True))


def _copied(_name: str, held: Any) -> Any:
    """A copy of a NumPy array. JAX remembers what it made of one, in float64 too, and would use it later."""
    return np.array(held) if type(held) is np.ndarray else held


def _as_traced(x: Any, aval: Any, *, exact: bool) -> Any:
    """An argument in float64, or as the program was traced with it."""
    if not exact:
        return x if is_opaque(aval.dtype) else jnp.asarray(x, aval.dtype)
    integer = not is_opaque(aval.dtype) and np.dtype(aval.dtype).kind in "iu"
    return wide(jnp.asarray(x, aval.dtype if integer else None))
