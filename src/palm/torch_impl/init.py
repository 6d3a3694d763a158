"""Initial weights of the torch wing. Mirror: palm.jax_impl.init."""

from __future__ import annotations

import torch

from palm.config import DType, PaLMConfig
from palm.spec.parameters import initial_value
from palm.torch_impl.model import PaLM
from palm.torch_impl.weights import from_arrays


def initialise(
    config: PaLMConfig, seed: int, *, dtype: DType, device: torch.device | str | None, attention: str
) -> PaLM:
    """The model whose weights `seed` gives: the same bits in both wings (see `spec.parameters`)."""
    return from_arrays(
        config,
        lambda parameter: initial_value(parameter, seed, dtype),
        dtype=dtype,
        device=device,
        attention=attention,
    )
