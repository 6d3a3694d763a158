"""What the instrument reads from a torch model, as NumPy arrays. Mirror: palm.jax_impl.probe."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from palm.errors import BackendError
from palm.recipes import Remat
from palm.spec.tokens import check_tokens, checked_beside
from palm.torch_impl.loss import next_token_loss
from palm.torch_impl.model import PaLM
from palm.torch_impl.norm import widen
from palm.torch_impl.pieces import is_placed
from palm.torch_impl.private import has_hooks
from palm.torch_impl.read import read_gradient, read_taps
from palm.torch_impl.weights import canonical, to_array
from palm.torch_impl.wrapped import check_taps, settled
from palm.tracing.turns import alone, shared

# What torch calls the precision of float32 products.
_MATMUL = {"float32": "highest", "tensorfloat32": "high", "bfloat16": "medium"}


@shared()
def activations(
    model: PaLM, tokens: np.ndarray, *, segments: np.ndarray | None = None, compiled: bool = False
) -> dict[str, np.ndarray]:
    """Every tap of one forward pass, in dataflow order; `compiled` runs it through torch.compile."""
    check_taps(model)
    weight = model.embedding.weight
    if is_placed(weight):
        _check_plain_rows(segments)
        rows, shape = _rows(model, tokens)
        taps = read_taps(model, weight, rows)
        return {name: to_array(tap).reshape(*shape, -1) for name, tap in taps.items()}
    forward = torch.compile(model.activations) if compiled else model.activations
    with torch.no_grad():
        ids = on_device(model, tokens)
        taps = forward(ids) if segments is None else forward(ids, _beside(ids, segments))
    return {name: to_array(tap) for name, tap in taps.items()}


@shared()
def logprobs(model: PaLM, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The log-probability of each next token in nats, float32 or wider, and whether none is likelier.

    Shapes: (..., n) -> (..., n − 1), (..., n − 1).
    """
    with torch.no_grad():
        ids = on_device(model, tokens, at_least=2)
        logits, targets = widen(model(ids[..., :-1])), ids[..., 1:]
        found = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
        return to_array(found), to_array(logits.argmax(-1) == targets)


def value_and_grad(
    model: PaLM,
    tokens: np.ndarray,
    *,
    segments: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    compiled: bool = False,
    remat: Remat = False,
    copied: bool = True,
) -> tuple[float, dict[str, np.ndarray]]:
    """Mean next-token loss and its gradient by canonical name. Leaves the model's own gradients alone.

    Not `copied`, the gradients may be views that are slow to read across, for a reader who lets them be.
    """
    model = settled(model)
    weight = model.embedding.weight
    if is_placed(weight):
        _check_plain_rows(segments, labels)
        rows, _ = _rows(model, tokens, at_least=2)
        value, placed = read_gradient(model, weight, rows, remat)
        return value, canonical(model, placed, copied=copied)
    own: dict[str, Tensor] = dict(model.named_parameters())
    # Its own weights are differentiated where they can be: others would be put in their place for a while,
    # under the eyes of all threads.
    is_free = all(map(_is_leaf, own.values()))

    def loss_of(leaves: dict[str, Tensor], ids: Tensor) -> Tensor:
        options: dict[str, Any] = {"remat": remat}
        if segments is not None:
            options["segments"] = _beside(ids, segments)
        logits = model(ids, **options) if is_free else functional_call(model, leaves, (ids,), options)
        return next_token_loss(logits, ids, options.get("segments"), _beside(ids, labels))

    with shared() if is_free else alone(), torch.inference_mode(False), torch.enable_grad():
        ids = on_device(model, tokens, at_least=2)
        leaves = own if is_free else {name: _leaf(parameter) for name, parameter in own.items()}
        loss = (torch.compile(loss_of) if compiled else loss_of)(leaves, ids)
        # As in JAX, what the loss does not depend on has a gradient of 0.
        grads = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return loss.item(), canonical(model, dict(zip(leaves, grads, strict=True)), copied=copied)


@contextmanager
def ahead(model: PaLM, tokens: np.ndarray, *, compiled: bool = False, remat: Remat = False) -> Iterator[None]:
    """Nothing: what JAX compiles ahead for the float64 self, torch runs as it is."""
    yield


@contextmanager
def widened(model: PaLM) -> Iterator[PaLM]:
    """The same model, same weights, computing in float64 as long as the block lasts."""
    # deepcopy takes these for copies it has made already: the weights are copied once, and wide.
    with shared():
        wide = {
            id(parameter): torch.nn.Parameter(parameter.detach().double(), parameter.requires_grad)
            for parameter in model.parameters()
        }
        widened = copy.deepcopy(model, wide).double()
    yield widened


def set_matmul(precision: str) -> None:
    """How precise this process multiplies float32 matrices: float32, tensorfloat32 or bfloat16 passes."""
    torch.set_float32_matmul_precision(_MATMUL[precision])


def device_name(model: PaLM) -> str:
    """The device the model is on, by its maker's name where it has one."""
    device = model.embedding.weight.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def square_product(model: PaLM, size: int) -> Callable[[], None]:
    """Multiplies a float32 matrix by itself where the model is, with the threads that train it; blocks."""
    matrix = torch.ones((size, size), device=model.embedding.weight.device)

    def multiply() -> None:
        torch.mm(matrix, matrix)

    return multiply


def attention_of(model: PaLM) -> str:
    """The name of the model's attention path."""
    return model.path


def on_device(model: PaLM, tokens: np.ndarray, *, at_least: int = 1) -> Tensor:
    """Checked tokens where the model is."""
    ids = check_tokens(tokens, model.config, at_least=at_least)
    return torch.from_numpy(ids).to(model.embedding.weight.device)


def _rows(model: PaLM, tokens: np.ndarray, *, at_least: int = 1) -> tuple[np.ndarray, tuple[int, ...]]:
    """Checked tokens as rows, and the shape that they had."""
    ids = check_tokens(tokens, model.config, at_least=at_least)
    return ids.reshape(-1, ids.shape[-1]), ids.shape


def _is_leaf(parameter: Tensor) -> bool:
    """Whether there is a gradient with respect to the tensor itself, and nobody's hook sees it."""
    return parameter.requires_grad and not parameter.is_inference() and not has_hooks(parameter)


def _leaf(parameter: Tensor) -> Tensor:
    # A model built in inference mode has tensors that autograd refuses; their copies are ordinary.
    return (parameter.clone() if parameter.is_inference() else parameter.detach()).requires_grad_()


def _beside(ids: Tensor, array: np.ndarray | None) -> Tensor | None:
    """Checked segments or labels, where the tokens are."""
    checked = checked_beside(array, tuple(ids.shape))
    return None if checked is None else torch.from_numpy(checked).to(ids.device)


def _check_plain_rows(*beside: np.ndarray | None) -> None:
    if any(array is not None for array in beside):
        raise BackendError(
            "a model must have whole weights to be given segments or labels; got one whose weights lie on a "
            'mesh of processes. Call palm.convert(model, backend="torch") in all of them first.'
        )
