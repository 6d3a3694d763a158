"""Primitives, each compiled once for all lines, layers and runs that call it alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
from jax.extend.core import JaxprEqn

from palm.jax_impl.trace.precision import as_held, is_float, promoted, wide

# Each is small and runs a few times: to optimise it would take longer.
_OPTIONS: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
_MOST = 4096

# Their parameters hold an update in the dtype that the program asked for; the functions make it anew.
_SCATTERS = {
    f"scatter{dash}": f"scatter{dash.replace('-', '_')}" for dash in ("", "-add", "-mul", "-min", "-max")
}

Kernel = Callable[..., list[Any]]


def kernel_of(eqn: JaxprEqn, working: str, *, exact: bool) -> tuple[Kernel, str]:
    """What computes an equation, and the dtype below `working` that it rounds to.

    If it is `exact`, in float64, whatever the program asks for.
    """
    params, rounds = promoted(eqn, working) if exact else (eqn.params, "")
    held = as_held(eqn) if exact else ()
    key = tuple((name, type(value), value) for name, value in params.items())
    try:
        return _shared(eqn.primitive, key, held, rounds, exact=exact), rounds
    except TypeError:  # a parameter that cannot be hashed, such as a function
        return _compiled(eqn.primitive, params, held, rounds, exact=exact), rounds


@lru_cache(maxsize=_MOST)
def _shared(primitive: Any, key: Any, held: Sequence[Any], rounds: str, *, exact: bool) -> Kernel:
    return _compiled(primitive, {name: value for name, _, value in key}, held, rounds, exact=exact)


def _compiled(primitive: Any, params: Any, held: Sequence[Any], rounds: str, *, exact: bool) -> Kernel:
    again = getattr(jax.lax, _SCATTERS.get(primitive.name, ""), None)

    def run(*ins: Any) -> list[Any]:
        ins = tuple(x.astype(d) if d else x for x, d in zip(ins, held, strict=True)) if held else ins
        if again is not None and exact:
            options = {k: v for k, v in params.items() if k not in ("update_jaxpr", "update_consts")}
            return [again(*ins, **options)]
        bind = primitive.get_bind_params(params)
        functions, own = bind if isinstance(bind, tuple) else ((), bind)  # the pair is of older releases
        found = primitive.bind(*functions, *ins, **own)
        results = list(found) if primitive.multiple_results else [found]
        if rounds:
            results = [x.astype(rounds) if is_float(x) else x for x in results]
        return [wide(x) for x in results] if exact else results

    return jax.jit(run, compiler_options=_OPTIONS)
