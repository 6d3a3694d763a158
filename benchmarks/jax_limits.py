"""The machine's limits by JAX's own matrix products and sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from limits import GPU_SHAPES, SHAPES, product_name, rate

Calls = dict[str, tuple[float, Callable[[], Any]]]


def prepare(spec: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """A run that measures every call of the kinds that `spec` names."""
    calls: Calls = {}
    for kind in spec["kinds"]:
        calls |= _reading(spec["megabytes"]) if kind == "bandwidth" else _products(kind)

    def run() -> dict[str, Any]:
        rates = {name: rate(*call, jax.block_until_ready) for name, call in calls.items()}
        return {"rates": rates}

    return run


@jax.jit
def _product(a: jax.Array, w: jax.Array) -> jax.Array:
    # A GPU's default for float32 is TF32, which is another limit.
    precision = "highest" if a.dtype == jnp.float32 else None
    return jnp.matmul(a, w, precision=precision, preferred_element_type=jnp.float32)


def _products(kind: str) -> Calls:
    calls: Calls = {}
    on_cpu = jax.devices()[0].platform == "cpu"
    for m, k, n in SHAPES if on_cpu else GPU_SHAPES:
        keys = jax.random.split(jax.random.key(0))
        a, w = (jax.random.normal(key, size, kind) for key, size in zip(keys, ((m, k), (k, n)), strict=True))
        calls[product_name(kind, "jax matmul", (m, k, n))] = 2 * m * k * n, _bound(_product, a, w)
    return calls


def _reading(megabytes: int) -> Calls:
    size = megabytes * 2**20
    matrix, vector = jnp.ones((size // 4096, 1024)), jnp.ones(1024)
    return {
        f"bandwidth: jax sum, {megabytes} MiB": (size, _bound(jax.jit(jnp.sum), matrix)),
        f"bandwidth: jax matrix by vector, {megabytes} MiB": (
            size,
            _bound(jax.jit(jnp.matmul), matrix, vector),
        ),
    }


def _bound(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)
