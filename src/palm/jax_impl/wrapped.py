"""What a user has made of a model, and whether palm's functions may still answer for it.

The rule is that of palm.torch_impl.wrapped: what goes by config and weights alone refuses a model that
computes anything else. A tree that was changed, by `eqx.tree_at` say, has other modules or other leaves.
Mirror: palm.torch_impl.wrapped; differs in that a tree of JAX's has neither wrappers nor hooks.
"""

from __future__ import annotations

from operator import attrgetter

import equinox as eqx
import jax
import numpy as np

from palm.errors import BackendError, WeightsError
from palm.jax_impl.attention import Attention
from palm.jax_impl.block import Block
from palm.jax_impl.feedforward import FeedForward
from palm.jax_impl.linear import Linear
from palm.jax_impl.model import Embedding, PaLM
from palm.jax_impl.norm import Norm
from palm.spec.parameters import parameters

_PARTS = {"blocks": Block, "blocks.attention": Attention, "blocks.feedforward": FeedForward}


def find_model(given: object) -> PaLM | None:
    """The model of palm's that `given` is; None where it is not."""
    return given if isinstance(given, PaLM) else None


def settled(model: PaLM) -> PaLM:
    """The model itself, if each of its leaves is an array.

    Raises `WeightsError` for one that has no values, as under `jax.eval_shape`.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        if not isinstance(leaf, (jax.Array, np.ndarray)):
            raise WeightsError(
                f"weights must be arrays; got model{jax.tree_util.keystr(path)} of {type(leaf).__name__}. "
                "Put arrays in the model's leaves, or build it with palm.from_numpy."
            )
    return model


def check_plain(model: PaLM) -> None:
    """Raise `BackendError` unless config and weights alone decide what the model computes."""
    weights = {row.kind: _kind_of_weight(row.kind) for row in parameters(model.config).values()}
    for name, kind in (_PARTS | weights).items():
        part = attrgetter(name)(model)
        if type(part) is not kind:
            raise BackendError(
                f"model must have the modules that palm built; got model.{name} of "
                f"{type(part).__module__}.{type(part).__qualname__}, not of {kind.__name__}. "
                "Put palm's module back, or call the model itself."
            )


def _kind_of_weight(name: str) -> type[eqx.Module]:
    if name == "embedding":
        return Embedding
    return Norm if name.rpartition(".")[2] == "norm" else Linear
