"""What the instrument reads from a torch model, as NumPy arrays. Mirror: palm.jax_impl.probe."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from palm.tokens import check_tokens
from palm.torch_impl.loss import next_token_loss
from palm.torch_impl.model import PaLM
from palm.torch_impl.weights import canonical, to_array


def activations(model: PaLM, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Every tap of one forward pass, in dataflow order."""
    with torch.no_grad():
        taps = model.activations(on_device(model, tokens))
    return {name: to_array(tap) for name, tap in taps.items()}


def value_and_grad(model: PaLM, tokens: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """Mean next-token loss and its gradient by canonical name. Leaves the model's own gradients alone."""
    with torch.inference_mode(False):
        ids = on_device(model, tokens, at_least=2)
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {name: _leaf(parameter) for name, parameter in model.named_parameters()}
        loss = next_token_loss(functional_call(model, leaves, (ids,)), ids)
        grads = torch.autograd.grad(loss, list(leaves.values()))
    return loss.item(), canonical(model, dict(zip(leaves, grads, strict=True)))


@contextmanager
def widened(model: PaLM) -> Iterator[PaLM]:
    """The same model, same weights, computing in float64 as long as the block lasts."""
    yield copy.deepcopy(model).double()


def device_name(model: PaLM) -> str:
    """The device the model is on, by its maker's name where it has one."""
    device = model.embedding.weight.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def on_device(model: PaLM, tokens: np.ndarray, *, at_least: int = 1) -> Tensor:
    """Checked tokens where the model is."""
    ids = check_tokens(tokens, model.config, at_least=at_least)
    return torch.from_numpy(ids).to(model.embedding.weight.device)


def _leaf(parameter: Tensor) -> Tensor:
    # A model built in inference mode has tensors that autograd refuses; their copies are ordinary.
    return (parameter.clone() if parameter.is_inference() else parameter.detach()).requires_grad_()
