"""JAX's primitives in float64, whatever the program asks for, and what of that it asked for on purpose."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from palm.tracing.numbers import settled
from palm.tracing.operation import DTYPES

_SAME = frozenset(
    ["copy", "copy_p", "stop_gradient", "optimization_barrier", "device_put", "name", "sharding_constraint"]
)
# What reads the bits of a number, or is compiled for its dtype, needs it in its own.
_OWN = frozenset(["bitcast_convert_type", "pallas_call", "custom_call", "ffi_call", "nextafter"])
# On one device what devices exchange is what each has.
_EXCHANGED = frozenset(
    [
        "psum",
        "psum_invariant",
        "pmax",
        "pmin",
        "pvary",
        "pbroadcast",
        "ppermute",
        "all_to_all",
        "reduce_scatter",
        "all_gather",
        "all_gather_invariant",
    ]
)
_ASKED = ("new_dtype", "dtype", "preferred_element_type", "out_dtype")


def is_float(x: Any) -> bool:
    """Whether its elements are floating-point numbers."""
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def is_opaque(dtype: Any) -> bool:
    """Whether it is the dtype of random keys, or its name: these are no numbers."""
    if isinstance(dtype, str):
        return dtype.startswith("key<")
    return bool(jnp.issubdtype(dtype, jax.dtypes.extended))


def narrow(x: np.ndarray) -> np.ndarray:
    """A number of float32 that was promoted while the program was traced, as it was; others as they are."""
    if x.dtype != np.float64:
        return x
    with np.errstate(over="ignore"):
        low = x.astype(np.float32)
    return low if low == x else x


def wide(x: Any, numbers: Collection[float] = ()) -> Any:
    """A float in float64, a complex number in complex128.

    A single number is taken to be what was written: 0.1, √8, or one of `numbers`.
    """
    dtype = getattr(x, "dtype", None)
    if dtype == np.complex64:
        return jnp.asarray(x, np.complex128)
    if dtype is None or is_opaque(dtype) or not jnp.issubdtype(dtype, jnp.floating) or dtype == np.float64:
        return x
    if isinstance(x, jax.core.Tracer):
        return x.astype(np.float64)
    host = np.asarray(x)
    if host.size == 1:
        return np.asarray(settled(host, numbers)).reshape(host.shape)
    return jnp.asarray(host, np.float64)


def as_held(eqn: JaxprEqn) -> tuple[Any, ...]:
    """The dtype that each argument must have, None if it may be float64; of most primitives, nothing."""
    if eqn.primitive.name not in _OWN:
        return ()
    avals: list[Any] = [v.aval for v in eqn.invars]
    return tuple(np.dtype(a.dtype) if is_float(a) else None for a in avals)


def alone(eqn: JaxprEqn, ins: Sequence[Any]) -> list[Any] | None:
    """What an exchange between devices gives on the only one; None for another primitive."""
    name = eqn.primitive.name
    if name == "axis_index":
        return [jnp.zeros((), np.int32)]
    if name == "ppermute" and (0, 0) not in [tuple(pair) for pair in eqn.params["perm"]]:
        return [jnp.zeros_like(x) for x in ins]  # nobody sends
    axes = eqn.params.get("axes", eqn.params.get("axis_name", ()))
    if name not in _EXCHANGED or any(
        isinstance(x, int) for x in (axes if isinstance(axes, tuple) else (axes,))
    ):
        return None
    shapes = [cast("Any", v.aval).shape for v in eqn.outvars]
    return [x.reshape(shape) for x, shape in zip(ins, shapes, strict=True)]


def is_same(eqn: JaxprEqn, working: str) -> bool:
    """Whether a primitive gives its only argument as it is, in float64."""
    name = eqn.primitive.name
    if name == "reduce_precision":
        return bool(eqn.params["mantissa_bits"] >= (52, 23, 7)[DTYPES[working]])
    if name == "convert_element_type":
        return all(is_float(v.aval) for v in (*eqn.invars, *eqn.outvars))
    return name in _SAME and len(eqn.outvars) == 1


def promoted(eqn: JaxprEqn, working: str) -> tuple[dict[str, Any], str]:
    """The parameters of a primitive in float64, and the dtype below `working` that it rounds to."""
    params, rounds = dict(eqn.params), ""
    for key in () if eqn.primitive.name in _OWN else _ASKED:
        dtype = params.get(key)
        name = None if dtype is None or is_opaque(dtype) else np.dtype(dtype).name
        if name in DTYPES:
            if DTYPES[name] > DTYPES[working] or (DTYPES[name] == DTYPES[working] and name != working):
                rounds = name
            params[key] = np.dtype("float64")
        elif name is not None and name.startswith("float8"):
            rounds, params[key] = name, np.dtype("float64")
        elif name == "complex64":
            params[key] = np.dtype("complex128")
    return params, rounds
