"""What the instrument reads from a JAX model, as NumPy arrays. Mirror: palm.torch_impl.probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from palm.jax_impl.loss import next_token_loss
from palm.jax_impl.model import PaLM
from palm.jax_impl.weights import canonical
from palm.jax_impl.wrapped import check_taps, settled
from palm.recipes import Remat
from palm.spec.tokens import check_tokens
from palm.tracing.turns import shared


@shared()
def activations(model: PaLM, tokens: np.ndarray, *, compiled: bool = True) -> dict[str, np.ndarray]:
    """Every tap of one forward pass, in dataflow order; not `compiled`, one operation at a time."""
    check_taps(model)
    with jax.disable_jit(not compiled):
        taps = model.activations(on_device(model, tokens))
    return {name: np.asarray(tap) for name, tap in taps.items()}


@shared()
def value_and_grad(
    model: PaLM, tokens: np.ndarray, *, compiled: bool = True, remat: Remat = False, copied: bool = True
) -> tuple[float, dict[str, np.ndarray]]:
    """Mean next-token loss and its gradient by canonical name.

    Not `copied`, the gradients are views for a reader who lets them be.
    """
    settled(model)
    with jax.disable_jit(not compiled):
        loss, grads = _value_and_grad(model, on_device(model, tokens, at_least=2), remat)
    return float(loss), canonical(model, grads, copied=copied)


@contextmanager
def widened(model: PaLM) -> Iterator[PaLM]:
    """The same model, same weights, computing in float64 as long as the block lasts."""
    with jax.enable_x64(True):
        with shared():
            wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model)
        yield wide


def set_matmul(precision: str) -> None:
    """How precise this process multiplies float32 matrices: float32, tensorfloat32 or bfloat16 passes."""
    jax.config.update("jax_default_matmul_precision", precision)


def device_name(model: PaLM) -> str:
    """The device the model is on, by its maker's name where it has one."""
    return next(iter(model.embedding.weight.devices())).device_kind


def square_product(model: PaLM, size: int) -> Callable[[], None]:
    """Multiplies a float32 matrix by itself where the model is, with the threads that train it. Blocks."""
    matrix = jax.device_put(np.ones((size, size), np.float32), model.embedding.weight.sharding)
    product = jax.jit(jnp.matmul)

    def multiply() -> None:
        product(matrix, matrix).block_until_ready()

    return multiply


def attention_of(model: PaLM) -> str:
    """The name of the model's attention path."""
    return model.blocks.attention.path


def on_device(model: PaLM, tokens: np.ndarray, *, at_least: int = 1) -> Array:
    """Checked tokens, which computations move to where the model is."""
    return jnp.asarray(check_tokens(tokens, model.config, at_least=at_least).astype(np.int32))


@eqx.filter_jit
@eqx.filter_value_and_grad
def _value_and_grad(model: PaLM, tokens: Array, remat: Remat) -> Array:
    return next_token_loss(model(tokens, remat=remat), tokens)
