"""Initial weights of the JAX wing. Mirror: palm.torch_impl.init."""

from __future__ import annotations

import jax

from palm.config import DType, PaLMConfig
from palm.jax_impl.model import PaLM
from palm.jax_impl.weights import from_arrays
from palm.spec.parameters import initial_value


def initialise(
    config: PaLMConfig, seed: int, *, dtype: DType, device: jax.Device | str | None, attention: str
) -> PaLM:
    """The model whose weights `seed` gives: the same bits in both wings (see `spec.parameters`)."""
    return from_arrays(
        config,
        lambda parameter: initial_value(parameter, seed, dtype),
        dtype=dtype,
        device=device,
        attention=attention,
    )
