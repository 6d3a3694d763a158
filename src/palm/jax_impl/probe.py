"""What the instrument reads from a JAX model, as NumPy arrays. Mirror: palm.torch_impl.probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import logsumexp

from palm.jax_impl.loss import next_token_loss
from palm.jax_impl.mesh import mesh_of_model
from palm.jax_impl.model import PaLM
from palm.jax_impl.norm import widen
from palm.jax_impl.sharding import fetched, mesh_on, on_each, share_out
from palm.jax_impl.weights import canonical
from palm.jax_impl.wrapped import check_taps, settled
from palm.recipes import Remat
from palm.spec.mesh import check_batch
from palm.spec.tokens import check_tokens, checked_beside
from palm.tracing.turns import shared

# A float64 self runs once: to optimise it takes longer than that saves.
_RUN_ONCE: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
_runs_once: ContextVar[bool] = ContextVar("runs_once", default=False)


@shared()
def activations(
    model: PaLM, tokens: np.ndarray, *, segments: np.ndarray | None = None, compiled: bool = True
) -> dict[str, np.ndarray]:
    """Every tap of one forward pass, in dataflow order; not `compiled`, one operation at a time."""
    check_taps(model)
    with jax.disable_jit(not compiled):
        read = _activations_once if _runs_once.get() else PaLM.activations
        ids = on_device(model, tokens)
        taps = read(model, ids, _beside(ids, segments, model))
    return {name: fetched(tap) for name, tap in taps.items()}


@shared()
def logprobs(model: PaLM, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The log-probability of each next token in nats, float32 or wider, and whether none is likelier.

    Shapes: (..., n) -> (..., n − 1), (..., n − 1).
    """
    found, likeliest = _logprobs(model, on_device(model, tokens, at_least=2))
    return fetched(found), fetched(likeliest)


@shared()
def value_and_grad(
    model: PaLM,
    tokens: np.ndarray,
    *,
    segments: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    compiled: bool = True,
    remat: Remat = False,
    copied: bool = True,
) -> tuple[float, dict[str, np.ndarray]]:
    """Mean next-token loss and its gradient by canonical name.

    Not `copied`, the gradients are views for a reader who lets them be.
    """
    settled(model)
    with jax.disable_jit(not compiled):
        compute = _value_and_grad_once if _runs_once.get() else _value_and_grad
        ids = on_device(model, tokens, at_least=2)
        beside = (_beside(ids, segments, model), _beside(ids, labels, model))
        loss, grads = compute(model, ids, *beside, remat)
    return float(loss), canonical(model, grads, copied=copied)


@contextmanager
def ahead(model: PaLM, tokens: np.ndarray, *, compiled: bool = True, remat: Remat = False) -> Iterator[None]:
    """While it lasts, a second thread compiles the float64 self's `activations` and `value_and_grad`."""

    weight = model.embedding.weight
    if not compiled or weight.dtype == jnp.float64 or mesh_on(weight) is not None:
        yield
        return

    def compile_both() -> None:
        with shared(), widened(model) as wide:
            ids = on_device(model, tokens, at_least=2)
            _activations_once.lower(wide, ids, None).compile()
            _value_and_grad_once.lower(wide, ids, None, None, remat).compile()

    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(compile_both)
        yield
    done.result()


@contextmanager
def widened(model: PaLM) -> Iterator[PaLM]:
    """The same model, same weights, computing in float64 as long as the block lasts."""
    with jax.enable_x64(True):
        with shared():
            wide = _wide(model)
        before = _runs_once.set(model.embedding.weight.dtype != jnp.float64)
        try:
            yield wide
        finally:
            _runs_once.reset(before)


def set_matmul(precision: str) -> None:
    """How precise this process multiplies float32 matrices: float32, tensorfloat32 or bfloat16 passes."""
    jax.config.update("jax_default_matmul_precision", precision)


def device_name(model: PaLM) -> str:
    """The device the model is on, by its maker's name where it has one."""
    return next(iter(model.embedding.weight.devices())).device_kind


def square_product(model: PaLM, size: int) -> Callable[[], None]:
    """Multiplies a float32 matrix by itself where the model is, with the threads that train it. Blocks.

    On a mesh all devices do so at once, each with a matrix of its own.
    """
    matrix = on_each(np.ones((size, size), np.float32), model.embedding.weight)
    product = jax.jit(jnp.matmul)

    def multiply() -> None:
        product(matrix, matrix).block_until_ready()

    return multiply


def attention_of(model: PaLM) -> str:
    """The name of the model's attention path."""
    return model.blocks.attention.path


def on_device(model: PaLM, tokens: np.ndarray, *, at_least: int = 1) -> Array:
    """Checked tokens, which computations move to where the model is.

    On a mesh, raises `ConfigError` for sequences that cannot be shared out: each device would compute all of
    them, and not what the mesh computes in a training.
    """
    ids = check_tokens(tokens, model.config, at_least=at_least).astype(np.int32)
    check_batch(ids.size // ids.shape[-1], 1, mesh_of_model(model))
    return jnp.asarray(share_out(ids, model.embedding.weight))


def _beside(ids: Array, array: np.ndarray | None, model: PaLM) -> Array | None:
    """Checked segments or labels, where the tokens are."""
    checked = checked_beside(array, ids.shape)
    return (
        None if checked is None else jnp.asarray(share_out(checked.astype(np.int32), model.embedding.weight))
    )


@eqx.filter_jit  # one program instead of one for each shape
def _wide(model: PaLM) -> PaLM:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model)


@eqx.filter_jit
def _logprobs(model: PaLM, tokens: Array) -> tuple[Array, Array]:
    logits, targets = widen(model(tokens[..., :-1])), tokens[..., 1:]
    found = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - logsumexp(logits, axis=-1)
    return found, logits.argmax(-1) == targets


@eqx.filter_value_and_grad
def _loss(model: PaLM, tokens: Array, segments: Array | None, labels: Array | None, remat: Remat) -> Array:
    return next_token_loss(model(tokens, segments=segments, remat=remat), tokens, segments, labels)


_value_and_grad = eqx.filter_jit(_loss)
_filter_jit: Any = eqx.filter_jit  # its types do not tell of jax.jit's options
_value_and_grad_once = _filter_jit(_loss, compiler_options=_RUN_ONCE)
_activations_once = _filter_jit(PaLM.activations, compiler_options=_RUN_ONCE)
