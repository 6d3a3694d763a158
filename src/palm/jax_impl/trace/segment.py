"""Straight pieces of a jaxpr, each compiled once as a program that gives the result of every operation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal

from palm.jax_impl.trace.inner import CALLS, Scope, inner_of, opened
from palm.jax_impl.trace.precision import bind, bound, is_opaque, is_same, wide
from palm.tracing.operation import DTYPES, Noise, Operation, Place
from palm.tracing.sample import EXACT

_MOVES = frozenset(("reshape", "transpose", "squeeze", "expand_dims", "rev", "broadcast_in_dim"))
_DRAWS = frozenset(("random_bits", "rng_bit_generator", "rng_uniform"))
_OPTIONS: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
# So many bytes of results are kept at once.
_BATCH = 1 << 28


@dataclass(frozen=True)
class Step:
    """One operation of a segment. `inputs`: a step's number, or −1 − k for the k-th value from outside.

    `shown`: whether its result is among those of the compiled program; otherwise it is that of `same_as`.
    """

    operation: Operation
    inputs: tuple[int, ...]
    same_as: int | None
    shown: bool


@dataclass(frozen=True)
class Ask:
    """What a segment is compiled for.

    `scope`: where it is called. `working`: the program's own dtype. `slots`: steps whose results and numbers
    are arguments, so that one compiled program serves every change of them. `hidden`: steps to show that
    otherwise are not. `noisy`: whether it rounds its results. `exact`: whether to compute in float64.
    """

    scope: Scope
    working: str
    slots: frozenset[int] = frozenset()
    hidden: frozenset[int] = frozenset()
    noisy: bool = False
    exact: bool = True
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True)
class Segment:
    """A compiled piece: its steps, and which of them its outputs are."""

    compiled: Any
    steps: Sequence[Step]
    outputs: Sequence[int]
    slots: frozenset[int]

    def run(
        self,
        arrays: Sequence[Any],
        values: Mapping[int, Any],
        numbers: Mapping[int, Any],
        factor: float,
    ) -> list[Any]:
        """The shown results, then the outputs; with other results and numbers of some of the slots.

        `factor`: that of the rounding it was compiled with.
        """
        puts = {}
        for i in self.slots:
            flag, put, own = _slot(self.steps[i])
            value = jnp.zeros(put.shape, put.dtype)
            if i in values:
                value = jnp.asarray(values[i], put.dtype).reshape(put.shape)
            held = numbers.get(i, self.steps[i].operation.constants)
            puts[i] = (jnp.asarray(i in values, flag.dtype), value, jnp.asarray(held, own.dtype))
        return self.compiled(puts, np.float64(factor), *arrays)


def compiled(
    eqns: Sequence[JaxprEqn],
    free: Sequence[Any],
    outs: Sequence[Any],
    arrays: Any,
    ask: Ask,
    base: Sequence[Step],
    noise: Noise | None,
) -> Segment:
    """One program for `eqns`: arrays for `free` -> the shown results, then the values of `outs`.

    `base`: the steps, known from an earlier one, if there are slots. `noise`: the rounding of each of them.
    """
    writer = _Writer(ask, noise)

    def run(puts: dict[int, Any], factor: Any, *given: Any) -> list[Any]:
        writer.start(puts, factor)
        env = {v: (x, -i - 1) for i, (v, x) in enumerate(zip(free, given, strict=True))}
        for eqn in eqns:
            writer.follow(eqn, env, ask.scope)
        writer.ends[:] = [env[v][1] for v in outs]
        return [*writer.shown, *(env[v][0] for v in outs)]

    lowered = jax.jit(run).lower({i: _slot(base[i]) for i in ask.slots}, np.float64(1), *arrays)
    program = lowered.compile(compiler_options=_OPTIONS)
    writer.shown.clear()
    return Segment(program, tuple(writer.steps), tuple(writer.ends), ask.slots)


def _slot(step: Step) -> tuple[Any, Any, Any]:
    """The arguments of a slot: whether its result is replaced, by what, and the numbers it reads."""
    op = step.operation
    dtype = "float64" if op.dtype in DTYPES else op.dtype
    of_numbers = jax.ShapeDtypeStruct((len(op.constants),), "float64")
    return jax.ShapeDtypeStruct((), "bool"), jax.ShapeDtypeStruct(op.shape, dtype), of_numbers


class _Writer:
    """Computes equations and writes down the steps."""

    def __init__(self, ask: Ask, noise: Noise | None) -> None:
        self.ask, self.noise = ask, noise
        self.steps: list[Step] = []
        self.shown: list[Any] = []
        self.ends: list[int] = []
        self.puts: dict[int, Any] = {}
        self.factor: Any = 1.0

    def start(self, puts: dict[int, Any], factor: Any) -> None:
        """Begin anew, with arguments for the slots and the rounding."""
        self.steps.clear()
        self.shown.clear()
        self.puts, self.factor = puts, factor

    def follow(self, eqn: JaxprEqn, env: dict[Any, tuple[Any, int]], scope: Scope) -> None:
        """Compute one equation, and what is inside it."""
        at = scope.place_of(eqn)
        if eqn.primitive.name in CALLS:
            self.enter(eqn, env, scope.of(inner_of(eqn), at), at)
            return
        ins = [self.widened(v.val) if isinstance(v, Literal) else env[v][0] for v in eqn.invars]
        known = tuple(env[v][1] for v in eqn.invars if not isinstance(v, Literal))
        single = [i for i, v in enumerate(eqn.invars) if _is_number(v)]
        constants = tuple(float(np.asarray(ins[i]).ravel()[0]) for i in single)
        if len(self.steps) in self.puts:
            for k, i in enumerate(single):
                own = np.asarray(ins[i])
                ins[i] = self.puts[len(self.steps)][2][k].astype(own.dtype).reshape(own.shape)
        results, rounds = bind(eqn, ins, self.ask.working) if self.ask.exact else (bound(eqn, ins), "")
        if self.ask.exact and is_same(eqn, results, ins, self.ask.working) and not rounds:
            env[eqn.outvars[0]] = (results[0], known[0]) if known else self.constant(results[0], at)
            return
        for v, x in zip(eqn.outvars, results, strict=True):
            name = eqn.primitive.name
            op = Operation(
                *(name, "operation", tuple(x.shape), str(cast("Any", v.aval).dtype), at),
                constants=constants,
                moves=name in _MOVES and len(known) == 1,
                draws=name in _DRAWS,
                rounds=rounds,
            )
            env[v] = self.result(op, known, x)

    def result(self, op: Operation, inputs: tuple[int, ...], x: Any) -> tuple[Any, int]:
        """Write down an operation with its result, or with the one that is put in its place."""
        index = len(self.steps)
        if index in self.puts:
            flag, value, _ = self.puts[index]
            x = jnp.where(flag, value.astype(x.dtype), x)
        if self.noise is not None and self.noise.bits[index] < EXACT and x.dtype == np.float64:
            kept = jax.lax.reduce_precision(
                x * self.factor, exponent_bits=11, mantissa_bits=int(self.noise.bits[index])
            )
            x = kept / self.factor
        shown = (not op.moves or index in self.ask.hidden) and not is_opaque(x.dtype)
        self.steps.append(Step(op, inputs, inputs[0] if op.moves else None, shown))
        if shown:
            self.shown.append(x)
        return x, index

    def widened(self, x: Any) -> Any:
        """What the program holds, as it computes with it here."""
        return wide(x, self.ask.numbers) if self.ask.exact else x

    def constant(self, x: Any, at: Place | None) -> tuple[Any, int]:
        """Write down an array that the program holds."""
        x = jnp.asarray(self.widened(x))
        return self.result(Operation("constant", "constant", tuple(x.shape), str(x.dtype), at), (), x)

    def enter(self, eqn: JaxprEqn, env: dict[Any, tuple[Any, int]], scope: Scope, at: Place | None) -> None:
        """Compute what is inside a call."""
        jaxpr, consts = opened(inner_of(eqn))
        inner: dict[Any, tuple[Any, int]] = {}
        given = [self.constant(v.val, at) if isinstance(v, Literal) else env[v] for v in eqn.invars]
        held = [self.constant(c, at) for c in consts]
        inner.update(zip([*jaxpr.constvars, *jaxpr.invars], [*held, *given], strict=True))
        for e in jaxpr.eqns:
            self.follow(e, inner, scope)
        for v, o in zip(eqn.outvars, jaxpr.outvars, strict=True):
            env[v] = self.constant(o.val, at) if isinstance(o, Literal) else inner[o]


def batches(eqns: Sequence[JaxprEqn]) -> Iterator[list[JaxprEqn]]:
    """Equations in pieces whose results fit into memory together."""
    batch: list[JaxprEqn] = []
    size = 0
    for eqn in eqns:
        batch.append(eqn)
        size += sum(8 * int(np.prod(getattr(v.aval, "shape", ()))) for v in eqn.outvars)
        if size > _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _is_number(var: Any) -> bool:
    return isinstance(var, Literal) and np.size(var.val) == 1 and np.asarray(var.val).dtype.kind in "fiu"
