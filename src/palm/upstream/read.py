"""Models of the two original repositories as palm models: the same function of the same tokens.

Sources: PaLM-pytorch 0.2.2 and PaLM-jax 0.1.2 (PyPI). With m the mean square, about the mean for LayerNorm:

    source                      positions                   norm divides by               keys, values
    palm_pytorch.palm_lite      ALiBi                       RMSNorm, max(sqrt(m), 1e-8)   one tensor
    palm_pytorch.palm_pytorch   rotary, pairs (p, p+e/2)    LayerNorm, sqrt(m + 1e-5)     two
    palm_jax.palm               rotary, pairs (2p, 2p+1)    LayerNorm, sqrt(m + 1e-5)     two
    palm_jax.palm_lite          ALiBi                       RMSNorm, sqrt(m + 1e-5/d)     one tensor

All four keep one projection (d, h·e + e + e + 2f) for q | k | v | up | gate, or (d, h·e + e + 2f) where one
tensor serves as keys and values; torch stores the transpose. All sizes are read from shapes: the output
matrix of the feed-forward gives f, that of the attention h·e, and then the width of the projection gives e.

Letters: d dim, h heads, e dim_head, f ff_mult·dim, v num_tokens, p a rotary pair.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from palm.config import Backend, DType, PaLMConfig
from palm.errors import UpstreamError
from palm.models import from_numpy
from palm.spec.parameters import DTYPES, parameters
from palm.upstream.config import config_of, kind_of
from palm.upstream.tensors import read_tensors, tensor_names

if TYPE_CHECKING:
    from palm.backends import JaxModel, Model, TorchModel

Arrays = dict[str, np.ndarray]


@overload
def from_upstream(
    model_or_state: Any,
    source: str,
    *,
    backend: Literal["torch"],
    dtype: DType | None = ...,
    device: Any = ...,
    attention: str = ...,
) -> TorchModel: ...


@overload
def from_upstream(
    model_or_state: Any,
    source: str,
    *,
    backend: Literal["jax"],
    dtype: DType | None = ...,
    device: Any = ...,
    attention: str = ...,
) -> JaxModel: ...


@overload
def from_upstream(
    model_or_state: Any,
    source: str,
    *,
    backend: Backend,
    dtype: DType | None = ...,
    device: Any = ...,
    attention: str = ...,
) -> Model: ...


def from_upstream(
    model_or_state: Any,
    source: str,
    *,
    backend: Backend,
    dtype: DType | None = None,
    device: Any = None,
    attention: str = "auto",
) -> Model:
    """The palm model that computes what an original model computes.

    `model_or_state` and `source` are those of `read_upstream`, the other arguments those of
    `palm.from_numpy`. No original needs to be installed. Raises what these two functions raise.
    """
    config, arrays = read_upstream(model_or_state, source)
    return from_numpy(config, arrays, backend=backend, dtype=dtype, device=device, attention=attention)


def read_upstream(model_or_state: Any, source: str) -> tuple[PaLMConfig, Arrays]:
    """The resolved config, and the weights by canonical name, in canonical layout, copied.

    `source` is one of the four above. `model_or_state` is a live model; its state_dict; its leaves in the
    order of `jax.tree.leaves`; a mapping by dotted attribute path (`layers.0.wi`); or the path of a file:
    `.pt`, `.pth`, `.safetensors`, `.npz` hold mappings, `.eqx` leaves. The eps is that of a live model, or
    else the published one.

    The two jax sources have the same names of tensors. Without a live model, weights of one also fit the
    other if h (or e) is even, and give half (or twice) the heads: compare `config.heads` with your model's.

    Raises `UpstreamError` if the weights are not the source's or a file is damaged, `MissingFrameworkError`
    for a torch file without torch.
    """
    tensors, eps = read_tensors(model_or_state, source)
    names = _match_names(tensors, source)
    arrays = {place: _orient(place, name, tensors[name], source) for place, name in names.items()}
    config = config_of(arrays, names, eps, source)
    _check(arrays, names, config)
    for i in range(config.depth):
        for name, part in _split(arrays[f"blocks.{i}.fused"], config, source).items():
            arrays[f"blocks.{i}.{name}"] = part
    return config, {name: np.array(arrays[name], order="C") for name in parameters(config)}


def _match_names(tensors: Mapping[str, np.ndarray], source: str) -> dict[str, str]:
    """The name of each tensor by its place, after checking that none is missing or unknown.

    Two may be missing: the output matrix, as tied tensors may be saved once, and a constant inv_freq.
    """
    blocks = (re.match(r"(\d+\.fn|layers\.\d+)\.", name) for name in tensors)
    depth = len({block[0] for block in blocks if block})
    names = tensor_names(source, max(1, depth))
    optional = ("unembedding", "inv_freq")
    missing = [name for place, name in names.items() if name not in tensors and place not in optional]
    unknown = sorted(tensors.keys() - names.values())
    if missing or unknown:
        raise UpstreamError(
            f"tensors must be those of {source}; got missing={_some(missing)}, unknown={_some(unknown)}. "
            "Name the source that they come from, and pass its bare state."
        )
    return {place: name for place, name in names.items() if name in tensors}


def _some(names: list[str]) -> str:
    return (", ".join(names[:6]) or "none") + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _orient(place: str, name: str, array: np.ndarray, source: str) -> np.ndarray:
    """The array as (in, out), checked for rank and dtype; torch's Linear stores the transpose."""
    rank = 1 if kind_of(place) in ("norm", "beta", "inv_freq") else 2
    if array.ndim != rank or not array.size or array.dtype not in DTYPES.values():
        raise UpstreamError(
            f"{name} must have {rank} axes and be one of {', '.join(DTYPES)}; got shape={array.shape}, "
            f"dtype={array.dtype}. Cast the original to float32, or name another source."
        )
    return array.T if source.startswith("palm_pytorch") and place != "embedding" else array


def _check(arrays: Arrays, names: Mapping[str, str], config: PaLMConfig) -> None:
    """Raise `UpstreamError` unless all shapes follow from the config and every bias is zero."""
    v, d, inner, e, f = config.num_tokens, config.dim, config.inner_dim, config.dim_head, config.ff_dim
    shapes = {
        "embedding": (v, d),
        "norm": (d,),
        "beta": (d,),
        "inv_freq": (e // 2,),
        "fused": (d, sum(_parts(config).values())),
        "out": (inner, d),
        "down": (f, d),
        "unembedding": (d, v),
    }
    for place, array in arrays.items():
        shape = shapes[kind_of(place)]
        if array.shape != shape:
            raise UpstreamError(
                f"{names[place]} must have (in, out) shape {shape}, like the rest of the model; got "
                f"shape={array.shape}. Use weights that belong together."
            )
        if kind_of(place) == "beta" and array.any():
            raise UpstreamError(
                f"{names[place]} must be zero because palm's norms have no bias; got "
                f"max={abs(array).max()}. There is no such palm model."
            )


def _parts(config: PaLMConfig) -> dict[str, int]:
    """The columns of the fused projection, in order: canonical name -> width."""
    e, f = config.dim_head, config.ff_dim
    keys = {"attention.key_value": e} if config.share_kv else {"attention.key": e, "attention.value": e}
    return {"attention.query": config.inner_dim, **keys, "feedforward.up": f, "feedforward.gate": f}


def _split(fused: np.ndarray, config: PaLMConfig, source: str) -> Arrays:
    """The fused projection's parts by canonical name, with rotary pairs in palm's order."""
    widths = _parts(config)
    parts = dict(zip(widths, np.split(fused, np.cumsum([*widths.values()])[:-1], axis=1), strict=True))
    if source == "palm_pytorch.palm_pytorch":
        for name in ("attention.query", "attention.key"):
            parts[name] = _interleave(parts[name], config.dim_head)
    return parts


def _interleave(matrix: np.ndarray, dim_head: int) -> np.ndarray:
    """Bring each head's column pairs (p, p+e/2) to (2p, 2p+1). Shapes: (d, h·e) -> (d, h·e)."""
    pairs = matrix.reshape(len(matrix), -1, 2, dim_head // 2)
    return pairs.swapaxes(-1, -2).reshape(matrix.shape)
