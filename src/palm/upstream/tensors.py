"""The tensors of the original models: their names, and reading them from a model or a file.

A live model, a state_dict, a list of leaves, a mapping or a file becomes one mapping from the original's
own names to NumPy arrays as stored. `palm.upstream.read` interprets them. No file is unpickled.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from palm.backends import wing
from palm.errors import MissingFrameworkError, UpstreamError
from palm.files.arrays import read_npy, read_npz
from palm.files.objects import MalformedError
from palm.files.read import open_regular, reading
from palm.files.tensors import read_tensors as read_safetensors
from palm.spec.parameters import DTYPES
from palm.upstream.rlhf import RLHF, unwrapped

_JAX = {
    "embedding": "embedding",
    "norm": "norm.gamma",
    "blocks.{i}.norm": "layers.{i}.norm.gamma",
    "blocks.{i}.fused": "layers.{i}.wi",
    "blocks.{i}.attention.out": "layers.{i}.attn_wo",
    "blocks.{i}.feedforward.down": "layers.{i}.ff_wo",
}
_TORCH = {
    "embedding": "0.weight",
    "blocks.{i}.fused": "{fn}.fused_attn_ff_proj.weight",
    "blocks.{i}.attention.out": "{fn}.attn_out.weight",
    "blocks.{i}.feedforward.down": "{fn}.ff_out.1.weight",
    "unembedding": "{output}.weight",
}
# Each original's names by their place in palm, where `fused` stands for query, key, value, up and gate.
# palm_jax.palm holds its inv_freq as a constant, so that only a live model has it.
_NAMES = {
    "palm_pytorch.palm_lite": {**_TORCH, "blocks.{i}.norm": "{fn}.norm.g", "norm": "{last}.g"},
    "palm_pytorch.palm_pytorch": {
        **_TORCH,
        "blocks.{i}.norm": "{fn}.norm.gamma",
        "blocks.{i}.beta": "{fn}.norm.beta",
        "blocks.{i}.inv_freq": "{fn}.rotary_emb.inv_freq",
        "norm": "{last}.gamma",
        "beta": "{last}.beta",
    },
    "palm_jax.palm": {**_JAX, "inv_freq": "inv_freq"},
    "palm_jax.palm_lite": _JAX,
}
# Those that run beside a palm model; the weights of palm-rlhf-pytorch can be read too.
SOURCES = tuple(_NAMES)
_NAMES[RLHF] = {
    "embedding": "token_emb.weight",
    "blocks.{i}.norm": "layers.{i}.fn.norm.gamma",
    "blocks.{i}.beta": "layers.{i}.fn.norm.beta",
    "blocks.{i}.inv_freq": "layers.{i}.fn.rotary_emb.inv_freq",
    "blocks.{i}.xpos": "layers.{i}.fn.rotary_emb.scale",
    "blocks.{i}.attention.query_norm": "layers.{i}.fn.q_scale",
    "blocks.{i}.attention.key_norm": "layers.{i}.fn.k_scale",
    "blocks.{i}.fused": "layers.{i}.fn.fused_attn_ff_proj.weight",
    "blocks.{i}.attention.out": "layers.{i}.fn.attn_out.weight",
    "blocks.{i}.feedforward.down": "layers.{i}.fn.ff_out.2.weight",
    "norm": "norm.gamma",
    "beta": "norm.beta",
    "unembedding": "to_logits.weight",
}


def tensor_names(source: str, depth: int) -> dict[str, str]:
    """The original's name of each tensor by its place in palm."""
    names = {}
    for place, name in _NAMES[source].items():
        for i in range(depth if "{i}" in place else 1):
            names[place.format(i=i)] = name.format(i=i, fn=f"{i + 1}.fn", last=depth + 1, output=depth + 2)
    return names


def check_source(source: object, known: Collection[str] = tuple(_NAMES)) -> None:
    """Raise `UpstreamError` unless `source` is a `known` one."""
    if source not in known:
        raise UpstreamError(f"source must be one of {', '.join(known)}; got source={source!r}. Choose one.")


def read_tensors(model_or_state: Any, source: str) -> tuple[dict[str, np.ndarray], set[float]]:
    """Arrays by the original's names, unchecked, and every eps that a live model tells.

    Raises `UpstreamError` for an unknown source or for what cannot be read, `MissingFrameworkError` for a
    torch file without torch.
    """
    check_source(source)
    tensors, eps = _open(model_or_state, source)
    tensors = unwrapped(tensors) if source == RLHF else tensors
    return {str(name): _to_array(name, tensor) for name, tensor in tensors.items()}, eps


def _open(given: Any, source: str) -> tuple[Mapping[str, Any], set[float]]:
    if isinstance(given, (str, Path)):
        given = _read_file(Path(given))
    if isinstance(given, Mapping):
        return given, set()
    if isinstance(given, (list, tuple)):
        return _name_leaves(given, source), set()
    if hasattr(given, "named_modules"):
        return given.state_dict(), {float(module.eps) for module in given.modules() if hasattr(module, "eps")}
    try:
        return _open_live_jax(given, source)
    except AttributeError:
        raise UpstreamError(
            "model_or_state must be an original's model, its state_dict, its leaves or a path; got "
            f"type={type(given).__module__}.{type(given).__qualname__}. Pass one of these."
        ) from None


def _open_live_jax(model: Any, source: str) -> tuple[Mapping[str, Any], set[float]]:
    leaves = [model.embedding, model.norm.gamma]
    for layer in model.layers:
        leaves += [layer.norm.gamma, layer.wi, layer.attn_wo, layer.ff_wo]
    rotary = hasattr(model, "inv_freq")
    own = "palm_jax.palm" if rotary else "palm_jax.palm_lite"
    if source != own:
        raise UpstreamError(
            f"source must be {own} for this model; got source={source!r}. Name the module it came from."
        )
    tensors = _name_leaves(leaves, source) | ({"inv_freq": model.inv_freq} if rotary else {})
    return tensors, {float(node.norm.eps) for node in (model, *model.layers)}


def _name_leaves(leaves: Sequence[Any], source: str) -> dict[str, Any]:
    depth, rest = divmod(len(leaves) - 2, 4)
    if not source.startswith("palm_jax") or depth < 1 or rest:
        raise UpstreamError(
            "leaves must be the 2 + 4·depth arrays of a palm_jax source; got "
            f"leaves={len(leaves)} with source={source!r}. Pass them all, in the order of jax.tree.leaves."
        )
    parts = ("norm.gamma", "wi", "attn_wo", "ff_wo")
    names = ["embedding", "norm.gamma", *(f"layers.{i}.{part}" for i in range(depth) for part in parts)]
    return dict(zip(names, leaves, strict=True))


def _to_array(name: object, tensor: Any) -> np.ndarray:
    try:
        if hasattr(tensor, "detach"):
            tensor = wing("torch").weights.to_array(tensor)
        array = np.asarray(tensor)
    except Exception as error:  # a tensor on "meta", a tracer, a ragged list: each raises its own
        raise UpstreamError(
            f"{name} must be an array; got {type(error).__name__}. Load its values."
        ) from None
    # NumPy's file format stores bfloat16 as two bytes without a type.
    return array.view(DTYPES["bfloat16"]) if array.dtype == "V2" else array


def _read_file(path: Path) -> Any:
    if path.suffix not in _FILES:
        raise UpstreamError(
            f"path must end in one of {', '.join(_FILES)}; got path={str(path)!r}. "
            "Save the weights in one of these formats."
        )
    read, write = _FILES[path.suffix]
    try:
        return read(path)
    except MissingFrameworkError:
        raise
    except (MalformedError, OSError) as error:
        told = error.strerror if isinstance(error, OSError) else error
        raise UpstreamError(
            f"path must be a readable {path.suffix} file; got path={str(path)!r}: {told}. "
            f"Write it with {write}."
        ) from None
    except Exception as error:  # a damaged file can raise almost anything
        raise UpstreamError(
            f"path must be a readable {path.suffix} file; got path={str(path)!r}, {type(error).__name__}. "
            f"Write it with {write}."
        ) from None


def _read_torch(path: Path) -> Any:
    wing("torch")  # says what to install where there is none
    with open_regular(path) as file:
        return importlib.import_module("torch").load(file, map_location="cpu", weights_only=True)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with open_regular(path) as file:
        return read_npz(file)


def _read_eqx(path: Path) -> list[np.ndarray]:
    leaves = []
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        while file.tell() < size:
            leaves.append(read_npy(file, size - file.tell()))
    return leaves


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    with reading(path) as reader:
        return read_safetensors(reader)


# How each kind of file is read, and how a good one is written.
_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    ".pt": (_read_torch, "torch.save(model.state_dict(), path)"),
    ".pth": (_read_torch, "torch.save(model.state_dict(), path)"),
    ".safetensors": (_read_safetensors, "safetensors.torch.save_model(model, path)"),
    ".npz": (_read_npz, "numpy.savez(path, **arrays)"),
    ".eqx": (_read_eqx, "equinox.tree_serialise_leaves(path, model)"),
}
