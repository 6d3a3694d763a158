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
from palm.jax_impl.norm import HeadNorm, Norm
from palm.spec.parameters import parameters
from palm.tracing.turns import shared

_PARTS: dict[str, type[eqx.Module]] = {
    "": PaLM,
    "blocks": Block,
    "blocks.attention": Attention,
    "blocks.feedforward": FeedForward,
}
# What the forward pass of a module reads of its static fields, by the field of the config.
_READ = {
    Norm: {"kind": "norm", "eps": "eps", "eps_mode": "norm_eps_mode"},
    Attention: {"heads": "heads"},
}
_CALL_IT = "Put palm's module back, or call the model itself."


def find_model(given: object) -> PaLM | None:
    """The model of palm's that `given` is; None where it is not."""
    return given if isinstance(given, PaLM) else None


@shared()
def settled(model: PaLM) -> PaLM:
    """The model itself, if each weight of the table is an array of its shape.

    Raises `WeightsError` for one that has no values, as under `jax.eval_shape`, or another shape, and
    `BackendError` where a module is not palm's.
    """
    for name, kind in _kinds(model).items():
        _part(model, name, kind)
    _check_arrays(model)
    for row in parameters(model.config).values():
        stacked = row.kind.startswith("blocks.")
        shape = (model.config.depth, *row.shape) if stacked else row.shape
        weight = attrgetter(f"{row.kind}.weight")(model)
        if np.shape(weight) != shape:
            raise WeightsError(
                f"weights must have the shapes of their config; got model.{row.kind}.weight of "
                f"{list(np.shape(weight))}, not {list(shape)}. Check that config and weights belong together."
            )
    return model


def check_taps(model: PaLM) -> None:
    """Raise `BackendError` unless the modules whose taps are taken, all but the innermost, are palm's own.

    Raises `WeightsError` for weights that no forward pass can use.
    """
    for name, kind in _PARTS.items():
        _check_methods(model, name, kind)
    _check_arrays(model)


def check_plain(model: PaLM) -> None:
    """Raise `BackendError` unless config and weights alone decide what the model computes."""
    config = model.config
    for name, kind in _kinds(model).items():
        _check_methods(model, name, kind)
        _check_settings(model, name, kind)
    for name, has_own in {
        "unembedding": not config.tie_embeddings,
        "blocks.attention.key_value": config.share_kv,
        "blocks.attention.query_norm": config.qk_norm,
        "blocks.attention.key_norm": config.qk_norm,
    }.items():
        if not has_own and attrgetter(name)(model) is not None:
            raise BackendError(
                f"model must have no modules but its config's; got model.{name}. Set it to None, or call the "
                "model itself."
            )


def _kinds(model: PaLM) -> dict[str, type[eqx.Module]]:
    """The name of every module that palm built, and its class."""
    return _PARTS | {row.kind: _kind_of_weight(row.kind) for row in parameters(model.config).values()}


def _kind_of_weight(name: str) -> type[eqx.Module]:
    kinds: dict[str, type[eqx.Module]] = {
        "embedding": Embedding,
        "norm": Norm,
        "query_norm": HeadNorm,
        "key_norm": HeadNorm,
    }
    return kinds.get(name.rpartition(".")[2], Linear)


def _check_arrays(model: PaLM) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(model, is_leaf=lambda leaf: leaf is None):
        name = jax.tree_util.keystr(path)
        # A module that the config does not have is None too.
        if leaf is None and not name.endswith(".weight"):
            continue
        if not isinstance(leaf, (jax.Array, np.ndarray)):
            raise WeightsError(
                f"weights must be arrays; got model{name} of {type(leaf).__name__}. "
                "Put arrays in the model's leaves, or build it with palm.from_numpy."
            )


def _check_methods(model: PaLM, name: str, kind: type[eqx.Module]) -> None:
    part = _part(model, name, kind)
    for method in vars(kind):
        own = getattr(kind, method)
        if not callable(own) or (method.startswith("__") and method != "__call__"):
            continue
        if getattr(type(part), method) is not own:
            raise BackendError(
                f"model must be a function of its weights alone; got {_place(name)} of {_name(part)}, with "
                f"{method}() of its own. {_CALL_IT}"
            )


def _check_settings(model: PaLM, name: str, kind: type[eqx.Module]) -> None:
    for field, of_config in _READ.get(kind, {}).items():
        own, whole = getattr(_part(model, name, kind), field), getattr(model.config, of_config)
        if own != whole:
            raise BackendError(
                f"model must have modules of its own config; got {_place(name)} with {of_config}={own!r}, "
                f"not {whole!r}. Build the module from model.config, or call the model itself."
            )


def _part(model: PaLM, name: str, kind: type[eqx.Module]) -> eqx.Module:
    part: object = attrgetter(name)(model) if name else model
    if isinstance(part, kind):
        return part
    raise BackendError(
        f"model must have the modules that palm built; got {_place(name)} of {_name(part)}, not of "
        f"{kind.__name__}. {_CALL_IT}"
    )


def _place(name: str) -> str:
    return f"model.{name}" if name else "model"


def _name(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
