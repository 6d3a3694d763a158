"""Runs a jaxpr in float64 and writes down every operation; control flow is run by Python."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from palm.jax_impl.trace.inner import Scope, has_loop, inner_of, opened
from palm.jax_impl.trace.precision import is_opaque, wide
from palm.jax_impl.trace.segment import Ask, Segment, Step, batches, compiled
from palm.tracing.fingerprint import NONE, of_array, real
from palm.tracing.operation import Change, Noise, Operation, Place
from palm.tracing.sample import sampled

Call = Callable[[Any, "list[Value]"], "list[Value]"]


@dataclass
class Value:
    """An array while a program runs, and which value of the trace it is; of a stack, which each part is."""

    array: Any
    index: int
    parts: list[Value] = field(default_factory=list)


class Runner:
    """One run. `segments` keeps what is compiled for the next run; `const` makes a value of a held array.

    `region`: operations that changes are likely to be about. `exact`: whether it computes in float64.
    """

    def __init__(
        self,
        change: Change,
        keep: Collection[int],
        *,
        working: str,
        segments: dict[Any, Segment],
        const: Callable[[Runner, Any], Value],
        region: Collection[int],
        exact: bool,
        numbers: tuple[float, ...] = (),
    ) -> None:
        self.change, self.keep, self.working = change, set(keep), working
        self.segments, self.const, self.region, self.exact = segments, const, region, exact
        self.numbers = numbers
        self.operations: list[Operation] = []
        self.fingerprints: list[np.ndarray] = []
        self.samples: list[np.ndarray] = []
        self.values: dict[int, np.ndarray] = {}

    def add(self, operation: Operation, array: Any, *, same_as: int | None = None) -> int:
        """Write down a value. Without an array it is that of `same_as`, or has no numbers."""
        index = len(self.operations)
        self.operations.append(operation)
        needed = array is not None and (index in self.keep or same_as is None)
        host = np.asarray(array) if needed else np.zeros(0)
        aligned = self.exact and self.change.noise is None
        found = of_array(host) if aligned and same_as is None else NONE
        self.fingerprints.append(found if same_as is None else self.fingerprints[same_as])
        self.samples.append(sampled(host) if same_as is None else self.samples[same_as])
        if index in self.keep:
            self.values[index] = real(host)
        return index

    def leaf(self, array: Any, kind: Any, name: str, dtype: str) -> Value:
        """Write down what the program was given or holds, moved by its rounding if asked."""
        index = len(self.operations)
        if index in self.change.scale:
            noise = np.random.default_rng(index).uniform(-1, 1, np.shape(array))
            array = jnp.asarray(array * (1 + self.change.scale[index] * noise))
        self.add(Operation(kind, kind, tuple(np.shape(array)), dtype, None, name), array)
        return Value(array, index)

    def evaluate(
        self, jaxpr: Jaxpr, consts: Sequence[Value], args: Sequence[Value], scope: Scope
    ) -> list[Value]:
        """The outputs of a jaxpr."""
        env: dict[Any, Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
        straight: list[JaxprEqn] = []
        start = 0
        for number, eqn in enumerate(jaxpr.eqns):
            if not has_loop(eqn):
                straight.append(eqn)
                continue
            self.segment((id(jaxpr), start), straight, env, scope)
            straight, start = [], number + 1
            ins = [self.read(env, v) for v in eqn.invars]
            at = scope.place_of(eqn)
            for var, value in zip(eqn.outvars, self.control(eqn, ins, at, scope), strict=True):
                env[var] = value
        self.segment((id(jaxpr), start), straight, env, scope)
        return [self.read(env, v) for v in jaxpr.outvars]

    def read(self, env: dict[Any, Value], var: Any) -> Value:
        """The value of a variable."""
        if isinstance(var, Literal):
            held = wide(var.val, self.numbers) if self.exact else var.val
            return self.leaf(held, "constant", "", str(cast("Any", var.aval).dtype))
        return env[var]

    def control(self, eqn: JaxprEqn, ins: list[Value], place: Place | None, scope: Scope) -> list[Value]:
        """Run control flow, or a call with some inside."""
        name, p = eqn.primitive.name, eqn.params

        def call(inner: Any, args: list[Value]) -> list[Value]:
            jaxpr, consts = opened(inner)
            return self.evaluate(jaxpr, [self.const(self, c) for c in consts], args, scope.of(inner, place))

        if name == "scan":
            return self.scan(p, ins, place, call)
        if name == "while":
            return self.loop(p, ins, call)
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
        return [*carry, *(self.stack(list(column), place) for column in zip(*rows, strict=True))]

    def part(self, x: Value, i: int, place: Place | None) -> Value:
        """One slice of a stacked value: what was stacked, if that is known."""
        if x.parts:
            return x.parts[i]
        array = x.array[i]
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

    def loop(self, p: Any, ins: list[Value], call: Any) -> list[Value]:
        """Run a while loop."""
        n, m = p["cond_nconsts"], p["body_nconsts"]
        tests, consts, carry = ins[:n], ins[n : n + m], ins[n + m :]
        while bool(call(p["cond_jaxpr"], [*tests, *carry])[0].array):
            carry = call(p["body_jaxpr"], [*consts, *carry])
        return carry

    def segment(self, key: Any, eqns: list[JaxprEqn], env: dict[Any, Value], scope: Scope) -> None:
        """Run equations without control flow; `key` says which ones they are."""
        for number, batch in enumerate(batches(eqns)):
            self.batch((key, number, scope), batch, env, scope)

    def batch(self, key: Any, eqns: list[JaxprEqn], env: dict[Any, Value], scope: Scope) -> None:
        """Run one piece, with what this run is to do differently in it."""
        made = {v for eqn in eqns for v in eqn.outvars}
        read = (v for eqn in eqns for v in eqn.invars if not isinstance(v, Literal) and v not in made)
        free = list(dict.fromkeys(read))
        outs = [v for eqn in eqns for v in eqn.outvars if not _is_dropped(v)]
        arrays = [env[v].array for v in free]

        def program(ask: Ask, base: Sequence[Step], noise: Noise | None = None) -> Segment:
            if (key, ask) not in self.segments:
                self.segments[key, ask] = compiled(eqns, free, outs, arrays, ask, base, noise)
            return self.segments[key, ask]

        plain = Ask(scope, self.working, exact=self.exact, numbers=self.numbers)
        base = program(plain, ()).steps
        first = len(self.operations)
        noise = self.change.noise and self.change.noise.part(first, len(base))
        segment = program(self.asked(plain, base), base, noise)
        values = {i - first: x for i, x in self.change.values.items()}
        numbers = {i - first: x for i, x in self.change.constants.items()}
        results = iter(segment.run(arrays, values, numbers, noise.factor if noise else 1.0))
        indices: list[int] = []

        def at(local: int) -> int:
            return env[free[-local - 1]].index if local < 0 else indices[local]

        for step in segment.steps:
            operation = replace(step.operation, inputs=tuple(dict.fromkeys(at(i) for i in step.inputs)))
            same = None if step.same_as is None else at(step.same_as)
            indices.append(self.add(operation, next(results) if step.shown else None, same_as=same))
        for var, local in zip(outs, segment.outputs, strict=True):
            env[var] = Value(next(results), at(local))

    def asked(self, plain: Ask, steps: Sequence[Step]) -> Ask:
        """What the segment that begins now must be compiled for: this run's change, or any of the region."""
        base = len(self.operations)
        changed = {i - base for i in (*self.change.values, *self.change.constants)} & set(range(len(steps)))
        region = {i - base for i in self.region} & set(range(len(steps)))
        slots = changed and (region if changed <= region else changed)
        usable = frozenset(i for i in slots if not is_opaque(steps[i].operation.dtype))
        hidden = frozenset(
            i - base for i in self.keep if 0 <= i - base < len(steps) and not steps[i - base].shown
        )
        return replace(plain, slots=usable, hidden=hidden, noisy=self.change.noise is not None)


def _is_dropped(var: Any) -> bool:
    """Whether nothing reads it. JAX has no public name for its class."""
    return type(var).__name__ == "DropVar"
