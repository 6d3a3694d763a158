"""Runs a jaxpr in float64, one primitive after the other, and writes down every operation."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from palm.jax_impl.trace.inner import CALLS, Scope, draws, inner_of, opened
from palm.jax_impl.trace.kernels import Kernel, kernel_of
from palm.jax_impl.trace.precision import alone, is_float, is_opaque, is_same, narrow, wide
from palm.tracing.fingerprint import NONE, of_array, real
from palm.tracing.operation import Change, Operation, Place
from palm.tracing.rounding import disturbed
from palm.tracing.sample import EXACT, rounded, sampled

_MOVES = frozenset(("reshape", "transpose", "squeeze", "expand_dims", "rev", "broadcast_in_dim"))
_LOOPS = frozenset(("scan", "while", "cond", "custom_linear_solve"))
# Numbers of so few bits behind the first one are the same in every dtype.
_SHORT = 2.0**11
Call = Callable[[Any, "list[Value]"], "list[Value]"]


@dataclass
class Value:
    """An array while a program runs, and which value of the trace it is; of a stack, which each part is."""

    array: Any
    index: int
    parts: list[Value] = field(default_factory=list)


Env = dict[Any, Value]


class Runner:
    """One run. `memo` keeps what every run of the program needs; `const` makes a value of a held array.

    `working`: the program's own dtype. `exact`: whether it computes in float64. `numbers`: see
    `palm.tracing.numbers.settled`.
    """

    def __init__(
        self,
        change: Change,
        keep: Collection[int],
        *,
        working: str,
        memo: dict[Any, Any],
        const: Callable[[Runner, Any], Value],
        exact: bool,
        numbers: tuple[float, ...] = (),
    ) -> None:
        self.change, self.keep, self.working = change, set(keep), working
        self.memo, self.const, self.exact, self.numbers = memo, const, exact, numbers
        self.operations: list[Operation] = []
        self.fingerprints: list[np.ndarray] = []
        self.samples: list[np.ndarray] = []
        self.values: dict[int, np.ndarray] = {}

    def add(self, operation: Operation, array: Any, *, same_as: int | None = None) -> int:
        """Write down a value; `same_as` has the same numbers. Random keys have none."""
        index = len(self.operations)
        self.operations.append(operation)
        needed = not is_opaque(array.dtype) and (index in self.keep or same_as is None)
        host = np.asarray(array) if needed else np.zeros(0)
        self.fingerprints.append(
            self.fingerprint(operation, host) if same_as is None else self.fingerprints[same_as]
        )
        self.samples.append(sampled(host) if same_as is None else self.samples[same_as])
        if index in self.keep:
            self.values[index] = real(host)
        return index

    def fingerprint(self, operation: Operation, host: np.ndarray) -> np.ndarray:
        """The fingerprint of the value that comes next, if this run is one to be aligned."""
        index = len(self.fingerprints)
        if not self.exact or not self.change.asks(index):
            return NONE
        if operation.kind != "parameter" or index in self.change.scale:
            return of_array(host)
        return np.asarray(self.once((operation, index), of_array, host))

    def leaf(self, array: Any, kind: Any, name: str, dtype: str) -> Value:
        """Write down what the program was given or holds, moved by its rounding if asked."""
        index = len(self.operations)
        operation = Operation(kind, kind, tuple(np.shape(array)), dtype, None, name)
        if index in self.change.scale and (is_float(array) or array.dtype == np.complex128):
            host = np.asarray(array)
            array = jnp.asarray(disturbed(index, self.change.scale[index], host) * host)
        return Value(array, self.add(operation, array))

    def evaluate(
        self, jaxpr: Jaxpr, consts: Sequence[Value], args: Sequence[Value], scope: Scope
    ) -> list[Value]:
        """The outputs of a jaxpr. What is not read any more is let go."""
        env: Env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
        for eqn, done in zip(jaxpr.eqns, self.once(("done", id(jaxpr)), _done, jaxpr), strict=True):
            at = self.once((id(eqn), scope), scope.place_of, eqn)
            if eqn.primitive.name in CALLS or eqn.primitive.name in _LOOPS:
                found = self.control(eqn, [self.read(env, v) for v in eqn.invars], at, scope)
            else:
                found = self.primitive(eqn, env, at)
            env.update(zip(eqn.outvars, found, strict=True))
            for var in done:
                del env[var]
        return [self.read(env, v) for v in jaxpr.outvars]

    def once(self, key: Any, make: Callable[[Any], Any], of: Any) -> Any:
        """What another run has found out, or this one now does."""
        if key not in self.memo:
            self.memo[key] = make(of)
        return self.memo[key]

    def read(self, env: Env, var: Any) -> Value:
        """The value of a variable."""
        if isinstance(var, Literal):
            own = _own(var)
            return self.leaf(self.held(own), "constant", "", str(own.dtype))
        return env[var]

    def held(self, own: np.ndarray) -> Any:
        """A number that stands in the program, in the dtype in which it is computed with here."""
        return wide(narrow(own), self.numbers) if self.exact else own

    def number(self, literal: Literal) -> Any:
        """A number as an argument: a value of its own if it is off by its rounding, for all that is known."""
        own = _own(literal)
        held = self.held(own)
        if not self.exact or not is_float(own) or not _is_rounded(own):
            return held
        return self.leaf(held, "constant", "", "float32") if float(held) == float(own) else held

    def primitive(self, eqn: JaxprEqn, env: Env, place: Place | None) -> list[Value]:
        """Compute an equation, with what this run is to do differently in it."""
        given = [self.number(v) if isinstance(v, Literal) else env[v] for v in eqn.invars]
        known = [x for x in given if isinstance(x, Value)]
        arrays = [x.array if isinstance(x, Value) else x for x in given]
        kernel, rounds = self.once(("kernel", id(eqn)), self.kernel, eqn)
        if self.exact and not rounds and is_same(eqn, self.working):
            dtype = str(cast("Any", eqn.outvars[0].aval).dtype)
            return known or [self.leaf(arrays[0], "constant", "", dtype)]
        single = [i for i, v in enumerate(eqn.invars) if _is_number(v)]
        constants = tuple(float(np.asarray(arrays[i])) for i in single)
        for i, number in zip(single, self.change.constants.get(len(self.operations), ()), strict=False):
            arrays[i] = np.asarray(number, arrays[i].dtype)
        results = alone(eqn, arrays)
        name = eqn.primitive.name
        return [
            self.result(
                Operation(
                    *(name, "operation", tuple(x.shape), str(cast("Any", v.aval).dtype), place),
                    inputs=tuple(dict.fromkeys(value.index for value in known)),
                    constants=constants,
                    moves=name in _MOVES and len(known) == 1,
                    draws=draws(eqn),
                    rounds=rounds,
                ),
                x,
            )
            for v, x in zip(eqn.outvars, kernel(*arrays) if results is None else results, strict=True)
        ]

    def kernel(self, eqn: JaxprEqn) -> tuple[Kernel, str]:
        """What computes an equation, and the dtype that it rounds to."""
        return kernel_of(eqn, self.working, exact=self.exact)

    def result(self, operation: Operation, array: Any) -> Value:
        """Write down what an operation gave, or what is put in its place."""
        if is_opaque(array.dtype):
            return Value(array, self.add(operation, array))
        index, noise = len(self.operations), self.change.noise
        if index in self.change.values:
            array = jnp.asarray(self.change.values[index], array.dtype).reshape(array.shape)
        if noise is not None and noise.bits[index] < EXACT and array.dtype == np.float64:
            with np.errstate(over="ignore", invalid="ignore"):
                low = rounded(np.asarray(array), int(noise.bits[index]), noise.factor, np)
            array = jnp.asarray(low)
        same = operation.inputs[0] if operation.moves else None
        return Value(array, self.add(operation, array, same_as=same))

    def control(self, eqn: JaxprEqn, ins: list[Value], place: Place | None, scope: Scope) -> list[Value]:
        """Run control flow, or a call with some inside."""
        name, p = eqn.primitive.name, eqn.params

        def call(inner: Any, args: list[Value]) -> list[Value]:
            jaxpr, consts = opened(inner)
            return self.evaluate(jaxpr, [self.const(self, c) for c in consts], args, scope.of(inner, place))

        if name == "scan":
            return self.scan(p, ins, place, call)
        if name == "while":
            return self.loop(p, ins, place, call)
        if name == "custom_linear_solve":
            lengths = p["const_lengths"]
            first = lengths.matvec + lengths.vecmat
            rest = sum(lengths)
            return call(p["jaxprs"].solve, [*ins[first : first + lengths.solve], *ins[rest:]])
        if name == "cond":
            chosen = int(np.clip(int(ins[0].array), 0, len(p["branches"]) - 1))
            return call(p["branches"][chosen], ins[1:])
        return call(inner_of(eqn), ins)

    def scan(self, p: Any, ins: list[Value], place: Place | None, call: Call) -> list[Value]:
        """Run a scan, one step after the other."""
        n, k = p["num_consts"], p["num_carry"]
        consts, carry, stacked = ins[:n], ins[n : n + k], ins[n + k :]
        rows: list[list[Value]] = []
        order = range(p["length"])
        for i in reversed(order) if p["reverse"] else order:
            found = call(p["jaxpr"], [*consts, *carry, *(self.part(x, i, place) for x in stacked)])
            carry, row = found[:k], found[k:]
            rows.append(row)
        rows = rows[::-1] if p["reverse"] else rows
        if not rows:  # stacks of nothing
            shapes = [v.aval for v in p["jaxpr"].jaxpr.outvars[k:]]
            empty = [jnp.zeros((0, *aval.shape), aval.dtype) for aval in shapes]
            return [*carry, *(self.leaf(x, "constant", "", str(x.dtype)) for x in empty)]
        return [*carry, *(self.stack(list(column), place) for column in zip(*rows, strict=True))]

    def part(self, x: Value, i: int, place: Place | None) -> Value:
        """One slice of a stacked value: what was stacked, if that is known."""
        if x.parts:
            return x.parts[i]
        array = x.array[i] if is_opaque(x.array.dtype) else jnp.asarray(np.asarray(x.array)[i])
        op = Operation(
            "slice", "operation", array.shape, str(array.dtype), place, inputs=(x.index,), name=f"[{i}]"
        )
        return Value(array, self.add(op, array))

    def stack(self, column: list[Value], place: Place | None) -> Value:
        """The outputs of all steps as one array."""
        array = jnp.stack([x.array for x in column])
        inputs = tuple(dict.fromkeys(x.index for x in column))
        op = Operation("stack", "operation", array.shape, str(array.dtype), place, inputs=inputs)
        return Value(array, self.add(op, array), column)

    def loop(self, p: Any, ins: list[Value], place: Place | None, call: Any) -> list[Value]:
        """Run a while loop. One with several conditions, of vmap, goes on with those that still hold."""
        n, m = p["cond_nconsts"], p["body_nconsts"]
        tests, consts, carry = ins[:n], ins[n : n + m], ins[n + m :]
        while np.any(np.asarray((holds := call(p["cond_jaxpr"], [*tests, *carry])[0]).array)):
            made = call(p["body_jaxpr"], [*consts, *carry])
            if np.ndim(holds.array):
                made = [self.chosen(holds, *pair, place) for pair in zip(made, carry, strict=True)]
            carry = made
        return carry

    def chosen(self, holds: Value, made: Value, before: Value, place: Place | None) -> Value:
        """What a step of a loop made, where the loop goes on; elsewhere what was before."""
        shape = (*np.shape(holds.array), *[1] * (np.ndim(made.array) - np.ndim(holds.array)))
        array = jnp.where(jnp.reshape(holds.array, shape), made.array, before.array)
        inputs = tuple(dict.fromkeys(x.index for x in (holds, made, before)))
        op = Operation("select_n", "operation", array.shape, str(array.dtype), place, inputs=inputs)
        return Value(array, self.add(op, array))


def _done(jaxpr: Jaxpr) -> list[list[Any]]:
    """For each equation, the variables that nothing reads behind it."""
    last: dict[Any, int] = {}
    for number, eqn in enumerate(jaxpr.eqns):
        last |= {v: number for v in (*eqn.invars, *eqn.outvars) if not isinstance(v, Literal)}
    for v in jaxpr.outvars:
        if not isinstance(v, Literal):
            last.pop(v, None)
    done: list[list[Any]] = [[] for _ in jaxpr.eqns]
    for v, number in last.items():
        done[number].append(v)
    return done


def _own(literal: Literal) -> np.ndarray:
    """A number as it stands in the program, in its dtype."""
    return np.asarray(literal.val, cast("Any", literal.aval).dtype)


def _is_number(var: Any) -> bool:
    return isinstance(var, Literal) and np.size(var.val) == 1 and np.asarray(var.val).dtype.kind in "fiu"


def _is_rounded(x: np.ndarray) -> bool:
    """Whether a number was rounded to float32 or less. One of few bits, 0.5 or 12, is as it was written."""
    number = float(x)
    mantissa = float(np.frexp(number)[0]) * _SHORT
    is_low = math.isfinite(number) and narrow(np.asarray(number)).dtype == np.float32
    return is_low and mantissa != round(mantissa)
