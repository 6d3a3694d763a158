"""Matrix products of the JAX wing, in the form that XLA does fastest.

On a CPU XLA is quick where batch dimensions are folded into rows (the gradient of a product took half the
time, that of a norm a twentieth) and, in bfloat16, where the result is asked for in float32 and then rounded
(940 against 400 GFLOP/s were measured on two cores of an AMD EPYC).
Letters: r rows, c columns, k contracted. Mirror: palm.torch_impl.linear.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from palm.jax_impl.shapes import Inputs, Left, Outputs, Product, Right, Weight
from palm.jax_impl.sharding import ways


def linear(x: Inputs, weight: Weight) -> Outputs:
    """x weight, differentiable; in bfloat16 in reverse mode only.

    Shapes: x (..., k), weight (k, c) -> (..., c).
    """
    rows = x.reshape(-1, x.shape[-1])
    is_half = x.dtype == weight.dtype == jnp.bfloat16
    y = _half_linear(rows, weight) if is_half else rows @ weight
    return y.reshape(*x.shape[:-1], -1)


def product(a: Left, b: Right, contracted: tuple[int, int] = (1, 0)) -> Product:
    """a b of two matrices in float32 or wider; `contracted` names the dimension of each that is summed over.

    Shapes: (r, k), (k, c) -> (r, c).
    """
    first, second = contracted
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, (((first,), (second,)), ((), ())), preferred_element_type=wide)


class Linear(eqx.Module):
    """`linear` by a weight (fan_in, fan_out), which starts as N(0, std²), by default 1/fan_in; no bias."""

    weight: Array

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        *,
        std: float | None = None,
        dtype: DTypeLike = jnp.float32,
        key: Array,
    ) -> None:
        self.weight = normal((fan_in, fan_out), std or fan_in**-0.5, dtype=dtype, key=key)

    def __call__(self, x: Inputs) -> Outputs:
        """Shapes: x (..., fan_in) -> (..., fan_out)."""
        return linear(x, self.weight)


def normal(shape: tuple[int, ...], std: float, *, dtype: DTypeLike, key: Array) -> Array:
    """N(0, std²), drawn in float32 or wider and then rounded to `dtype`."""
    return (jax.random.normal(key, shape, jnp.promote_types(dtype, jnp.float32)) * std).astype(dtype)


@jax.custom_vjp
def _half_linear(x: Array, weight: Array) -> Array:
    return _half_product(_laid_out(x), weight)


def _forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return _half_linear(x, weight), (x, weight)


def _backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    (x, weight), grad = saved, _laid_out(grad)
    # Summed over two dimensions, one of them of length 1: XLA is twice as quick as over one.
    for_weight = lax.dot_general(
        x[None], grad[None], (((0, 1), (0, 1)), ((), ())), preferred_element_type=jnp.float32
    )
    return _half_product(grad, weight, (1, 1)), for_weight.astype(weight.dtype)


_half_linear.defvjp(_forward, _backward)


def _half_product(a: Array, b: Array, contracted: tuple[int, int] = (1, 0)) -> Array:
    """`product` in the dtype of a."""
    if ways(a) == 1:
        return product(a, b, contracted).astype(a.dtype)
    # In this dtype at once: the devices' parts of the sum travel in the dtype that the product has here. What
    # each device sums by itself, a TPU sums in float32 all the same.
    first, second = contracted
    return lax.dot_general(a, b, (((first,), (second,)), ((), ())))


def _laid_out(x: Array) -> Array:
    # XLA on a CPU has no program for this product of a transposed first matrix, and a transposition that made
    # x would become a part of the product.
    return lax.optimization_barrier(x)
