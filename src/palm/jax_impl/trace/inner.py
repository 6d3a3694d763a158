"""Functions inside a jaxpr: how they are opened, and which line of the user's they belong to."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from palm.errors import ProbeError
from palm.jax_impl.trace.precision import is_float, is_opaque, narrow
from palm.tracing.operation import Place
from palm.tracing.places import CALLERS, is_users, runs_programs

CALLS = frozenset(
    [
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "call",
        "custom_jvp_call",
        "custom_vjp_call",
        "checkpoint",
        "remat",
        "custom_vjp_call_jaxpr",
        "custom_lin",
        "shard_map",
    ]
)
_WHERE = re.compile(r" at (.*):\d+$")


@dataclass(frozen=True)
class Scope:
    """The line from which an inner function is called; `fixed` if it stands for all that is inside."""

    place: Place | None
    fixed: bool

    def of(self, inner: Any, place: Place | None) -> Scope:
        """The scope inside a function that is called at `place`."""
        return Scope(place, self.fixed or _is_librarys(inner))

    def place_of(self, eqn: JaxprEqn) -> Place | None:
        """The user's line of an equation. Inside a library's function it is the line that called this."""
        if self.fixed:
            return self.place
        traceback = eqn.source_info.traceback
        module = str(eqn.source_info.name_stack)
        frames: Sequence[Any] = traceback.frames if traceback is not None else ()
        inside = itertools.takewhile(lambda frame: not runs_programs(frame.file_name), frames)
        own = [frame for frame in inside if is_users(frame.file_name)]
        if not own:
            return self.place
        callers = tuple((frame.file_name, frame.line_num) for frame in own[1 : CALLERS + 1])
        return Place(own[0].file_name, own[0].line_num, own[0].function_name, module, callers)


def inner_of(eqn: JaxprEqn) -> Any:
    """The jaxpr that an equation calls. Raises `ProbeError` if it is for several devices."""
    mesh = eqn.params.get("mesh")
    if mesh is not None and mesh.size > 1:
        raise ProbeError(
            f"a program must run on one device to be traced; got a shard_map over {mesh.size}. Build it with "
            "a mesh of one device, or compare the function inside."
        )
    return next(eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params)


def opened(inner: Any) -> tuple[Jaxpr, Sequence[Any]]:
    """A jaxpr and the constants it holds."""
    return (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, ())


def all_of(closed: ClosedJaxpr) -> Iterator[ClosedJaxpr]:
    """A jaxpr and those of the functions inside it."""
    yield closed
    for eqn in closed.jaxpr.eqns:
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: isinstance(x, (ClosedJaxpr, Jaxpr))):
            if isinstance(inner, (ClosedJaxpr, Jaxpr)):
                yield from all_of(ClosedJaxpr(*opened(inner)))


def draws(eqn: JaxprEqn) -> bool:
    """Whether a primitive makes random numbers."""
    return eqn.primitive.name.startswith(("random_bits", "random_gamma", "rng_", "threefry"))


def held_by(closed: ClosedJaxpr) -> Iterator[Any]:
    """The constants that a jaxpr and the functions inside it hold."""
    return (c for one in all_of(closed) for c in one.consts)


def read_as(jaxpr: Jaxpr, var: Any) -> set[str]:
    """The dtypes in which a variable is read: what it is cast to, or else its own."""
    found: set[str] = set()
    for eqn in jaxpr.eqns:
        for number in (i for i, v in enumerate(eqn.invars) if v is var):
            name = eqn.primitive.name
            if name in CALLS:
                inner = opened(inner_of(eqn))[0]
                found |= read_as(inner, inner.invars[number])
            else:
                found.add(str(eqn.params["new_dtype"] if name == "convert_element_type" else var.aval.dtype))
    return found


def single_numbers(closed: ClosedJaxpr) -> Iterator[np.ndarray]:
    """The single floats among the constants and arguments inside a jaxpr, in their dtypes."""
    written = (
        v.val
        for one in all_of(closed)
        for eqn in one.jaxpr.eqns
        for v in eqn.invars
        if isinstance(v, Literal)
    )
    for x in (*held_by(closed), *written):
        if hasattr(x, "dtype") and np.size(x) == 1 and not is_opaque(x.dtype) and is_float(x):
            yield narrow(np.asarray(x))


def _is_librarys(inner: Any) -> bool:
    """Whether a library's function is called. JAX traces it once: its lines are those of its first caller."""
    info = getattr(opened(inner)[0], "debug_info", None)
    found = _WHERE.search(getattr(info, "func_src_info", None) or "")
    return found is not None and not is_users(found.group(1))
