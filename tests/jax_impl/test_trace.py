"""Any JAX program is traced, in float64; or the error says what to do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

import palm
from palm.jax_impl.trace.program import trace_program
from palm.tracing.operation import Change

X = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
W = jnp.asarray(np.random.default_rng(1).standard_normal((6, 6)).astype(np.float32))
MLP = eqx.nn.MLP(6, 3, 5, 2, key=jax.random.key(0))
NORM, STATE = eqx.nn.make_with_state(eqx.nn.BatchNorm)(6, "batch", mode="batch")
MESH = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
P = jax.sharding.PartitionSpec


@jax.custom_jvp
def exponential(x: Any) -> Any:
    return jnp.exp(x)


exponential.defjvp(lambda given, tangents: (exponential(*given), exponential(*given) * tangents[0]))


@jax.custom_vjp
def sine(x: Any) -> Any:
    return jnp.sin(x)


sine.defvjp(lambda x: (sine(x), x), lambda x, grad: (grad * jnp.cos(x),))


def scanned(x: Any, *, reverse: bool = False) -> Any:
    def step(carry: Any, row: Any) -> Any:
        carry = jnp.tanh(carry @ W + row)
        return carry, carry * 2

    return jax.lax.scan(step, jnp.zeros(6), x, reverse=reverse)


def pinned(x: Any) -> Any:
    def step(carry: Any, row: Any) -> Any:
        return carry + row.astype(jnp.float32), carry

    return jax.lax.scan(step, jnp.zeros(6, jnp.float32), x)[0]


def exchanged(x: Any) -> Any:
    gathered = jax.lax.all_gather(x, "i", tiled=True)
    return gathered + jax.lax.pmean(x, "i") * (1 + jax.lax.axis_index("i"))


def sharded(x: Any) -> Any:
    return jax.shard_map(exchanged, mesh=MESH, in_specs=P("i"), out_specs=P(), check_vma=False)(x)


def doubled(x_ref: Any, o_ref: Any) -> None:
    o_ref[...] = x_ref[...] * 2


def kernel(x: Any) -> Any:
    shape = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    return pl.pallas_call(doubled, out_shape=shape, interpret=True)(x)


def normed(x: Any) -> Any:
    return jax.vmap(NORM, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, STATE)[0]


PROGRAMS: dict[str, Callable[..., Any]] = {
    "closure": lambda x: x @ W * np.float32(0.1),
    "scan": scanned,
    "scan from the end": lambda x: scanned(x, reverse=True),
    "gradient of a scan": lambda x: jax.grad(lambda y: scanned(y)[1].sum())(x),  # noqa: PLW0108
    "while": lambda x: jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.sin(s[1])), (0, x)),
    "cond": lambda x: jax.lax.cond(x.sum() > 0, jnp.sin, lambda y: y @ W, x),
    "custom_jvp": lambda x: (exponential(x), jax.grad(lambda y: exponential(y).sum())(x)),
    "custom_vjp": lambda x: (sine(x), jax.grad(lambda y: sine(y).sum())(x)),
    "checkpoint": lambda x: jax.grad(lambda y: jax.checkpoint(lambda z: jnp.tanh(z @ W))(y).sum())(x),  # noqa: PLW0108
    "jit": jax.jit(lambda x: jax.jit(lambda y: y @ W)(x)),  # noqa: PLW0108
    "shard_map": sharded,
    "keys": lambda x: x * jax.random.normal(jax.random.key(0), (6,)),
    "Equinox": lambda x: jax.vmap(MLP)(x),  # noqa: PLW0108
    "Equinox's gradient": lambda x: eqx.filter_grad(lambda m, y: jax.vmap(m)(y).sum())(MLP, x),
    "Equinox with a state": normed,
    "pallas, interpreted": kernel,
    "complex": jnp.fft.fft,
    "linalg": lambda x: (jnp.linalg.svd(x)[1], jnp.linalg.qr(x)[1]),
    "scatter": lambda x: x.at[jnp.array([0, 1])].add(W[:2]).at[0, 0].set(3.0),
    "bfloat16": lambda x: (x.astype(jnp.bfloat16) @ W.astype(jnp.bfloat16)).astype(jnp.float32),
    "pinned float32": pinned,
    "callback": lambda x: jax.pure_callback(np.tanh, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
}
EQUINOX = ("Equinox", "Equinox's gradient", "Equinox with a state")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_agrees_with_itself(name):
    held = [np.asarray(leaf) for leaf in jax.tree.leaves((W, eqx.filter(MLP, eqx.is_array)))]
    found = palm.compare(PROGRAMS[name], PROGRAMS[name], X, frameworks=("jax", "jax"))
    assert found.outcome == "agree", found.verdict
    after = jax.tree.leaves((W, eqx.filter(MLP, eqx.is_array)))
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(held, after, strict=True))


@pytest.mark.parametrize("name", ["scan from the end", "complex", "shard_map", "pinned float32"])
def test_one_that_differs_a_little_is_told_from_it(name):
    def other(x: Any) -> Any:
        return jax.tree.map(lambda y: y * (1 + 1e-5), PROGRAMS[name](x))

    assert palm.compare(PROGRAMS[name], other, X, frameworks=("jax", "jax")).outcome == "differ"


def test_numbers_are_wide_whatever_jax_allows():
    with jax.enable_x64(True):
        wide = palm.trace(scanned, X, framework="jax")
    narrow = palm.trace(scanned, X, framework="jax")
    assert len(wide.operations) == len(narrow.operations)
    for name, value in wide.results.items():
        np.testing.assert_allclose(narrow.results[name], value, rtol=1e-14)


def test_what_a_program_holds_has_the_line_that_reads_it():
    recorded = palm.trace(lambda x: x @ W, X, framework="jax")
    parameters = [op for op in recorded.operations if op.kind == "parameter"]
    assert parameters
    assert all(op.place is not None for op in parameters)


def test_a_mesh_of_several_devices_is_refused():
    mesh = jax.sharding.AbstractMesh((2,), ("i",))
    program = jax.shard_map(lambda x: x * 2, mesh=mesh, in_specs=P("i"), out_specs=P("i"))
    with pytest.raises(palm.ProbeError, match=r"one device to be traced; got a shard_map over 2"):
        palm.trace(program, X, framework="jax")


def test_a_program_that_fails_says_why():
    with pytest.raises(palm.ProbeError, match="must run on its inputs, in float64 too, as"):
        palm.trace(lambda x: jnp.sin(x) @ x, X, framework="jax")


def test_a_layer_like_another_and_another_run_compile_nothing(caplog):
    def layers(x: Any, count: int) -> Any:
        for _ in range(count):
            x = jnp.tanh(x @ W) * np.float32(0.1) + x
        return x

    def compilations(call: Callable[[], Any]) -> int:
        caplog.clear()
        with jax.log_compiles(True), caplog.at_level(logging.WARNING):
            call()
        return sum("Finished XLA compilation" in record.getMessage() for record in caplog.records)

    program = trace_program(lambda x: layers(x, 1), (X,), "one layer")
    product = next(i for i, op in enumerate(program.operations) if op.op == "dot_general")
    numbered = next(i for i, op in enumerate(program.operations) if op.constants)
    assert compilations(lambda: trace_program(lambda x: layers(x, 9), (X,), "nine layers")) == 0
    assert compilations(lambda: program.run(Change(constants={numbered: (0.2,)}))) == 0
    assert compilations(lambda: program.run(Change(values={product: np.ones((4, 6))}))) == 0
    # The negative control: another shape is another program.
    assert compilations(lambda: trace_program(lambda x: layers(x, 1), (X[:3],), "fewer rows")) > 0
