"""Models of the original repositories as palm models: the same function of the same tokens.

Sources: PaLM-pytorch 0.2.2, PaLM-jax 0.1.2, palm-rlhf-pytorch 0.2.1 and 0.8.0 (PyPI). With m the mean square,
about the mean for LayerNorm:

    source                      positions                   norm divides by               keys, values
    palm_pytorch.palm_lite      ALiBi                       RMSNorm, max(sqrt(m), 1e-8)   one tensor
    palm_pytorch.palm_pytorch   rotary, pairs (p, p+e/2)    LayerNorm, sqrt(m + 1e-5)     two
    palm_jax.palm               rotary, pairs (2p, 2p+1)    LayerNorm, sqrt(m + 1e-5)     two
    palm_jax.palm_lite          ALiBi                       RMSNorm, sqrt(m + 1e-5/d)     one tensor
    palm_rlhf_pytorch           xPos, pairs (p, p+e/2)      LayerNorm, sqrt(m + 1e-5)     two

`palm.upstream.rlhf` describes the files of the last. All five keep one projection (d, h·e + e + e + 2f) for
q | k | v | up | gate, or (d, h·e + e + 2f) where one tensor serves as keys and values; torch stores the
transpose. All sizes are read from shapes: the output matrix of the feed-forward gives f, that of attention
gives h·e, and then the width of the projection gives e.

Letters: d dim, h heads, e dim_head, f ff_mult·dim, v num_tokens, p a rotary pair.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np

from palm.config import Backend, DType, PaLMConfig
from palm.errors import UpstreamError
from palm.models import from_numpy
from palm.spec.parameters import DTYPES, parameters
from palm.upstream import rlhf
from palm.upstream.config import config_of, kind_of
from palm.upstream.rlhf import RLHF, NormScale, Tell
from palm.upstream.tensors import read_tensors, tensor_names

if TYPE_CHECKING:
    from palm.backends import JaxModel, Model, TorchModel

Arrays = dict[str, np.ndarray]
_VECTORS = ("norm", "beta", "inv_freq", "xpos", "query_norm", "key_norm")


@overload
def from_upstream(
    model_or_state: Any,
    source: str,
    *,
    backend: Literal["torch"],
    dtype: DType | None = ...,
    device: Any = ...,
    attention: str = ...,
    norm_scale: NormScale | None = ...,
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
    norm_scale: NormScale | None = ...,
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
    norm_scale: NormScale | None = ...,
) -> Model: ...


def from_upstream(
    model_or_state: Any,
    source: str,
    *,
    backend: Backend,
    dtype: DType | None = None,
    device: Any = None,
    attention: str = "auto",
    norm_scale: NormScale | None = None,
) -> Model:
    """The palm model that computes what an original model computes.

    `model_or_state`, `source` and `norm_scale` are those of `read_upstream`, the other arguments those of
    `palm.from_numpy`. No original needs to be installed. Raises what these two functions raise.
    """
    config, arrays = read_upstream(model_or_state, source, norm_scale=norm_scale)
    return from_numpy(config, arrays, backend=backend, dtype=dtype, device=device, attention=attention)


def read_upstream(
    model_or_state: Any,
    source: str,
    *,
    norm_scale: NormScale | None = None,
    tell: Tell | None = None,
) -> tuple[PaLMConfig, Arrays]:
    """The resolved config, and the weights by canonical name, in canonical layout, copied.

    `source` is one of the five above. `model_or_state` is a live model; its state_dict; its leaves in the
    order of `jax.tree.leaves`; a mapping by dotted attribute path (`layers.0.wi`); or the path of a file:
    `.pt`, `.pth`, `.safetensors`, `.npz` hold mappings, `.eqx` leaves. The eps is that of a live model, or
    else the published one.

    The two jax sources have the same names of tensors. Without a live model, weights of one also fit the
    other if h (or e) is even, and give half (or twice) the heads: compare `config.heads` with your model's.

    Of palm_rlhf_pytorch, weights may be inside a trainer's dictionary, and under the prefixes of wrappers.
    `norm_scale` says whether norms multiply by gamma, "plain", or by gamma + 1, "plus-one"; None: the values
    decide. What they decided, and what does not come along, `tell` is told; by default it is a warning.

    Raises `UpstreamError` if the weights are not the source's, a file is damaged, or `norm_scale` is for
    another source or must be given; `MissingFrameworkError` for a torch file without torch.
    """
    tensors, eps = read_tensors(model_or_state, source)
    settings: dict[str, Any] = {}
    if source == RLHF:
        _check_norm_scale(norm_scale)
        settings, tensors = rlhf.settings(model_or_state), rlhf.cleaned(tensors, norm_scale, tell or _warn)
    elif norm_scale is not None:
        raise UpstreamError(
            f"norm_scale must be left out but with source={RLHF!r}; got norm_scale={norm_scale!r} with "
            f"source={source!r}. Leave it out."
        )
    names = _match_names(tensors, source)
    # Each original tensor goes when its copy is there: they need not fit into memory twice.
    arrays = {place: _orient(place, name, tensors.pop(name), source) for place, name in names.items()}
    config = config_of(arrays, names, eps, source, settings)
    _check(arrays, names, config)
    for i in range(config.depth):
        for name, part in _split(arrays.pop(f"blocks.{i}.fused"), config, source).items():
            arrays[f"blocks.{i}.{name}"] = np.array(part, order="C")
        if config.qk_norm:
            for name in (f"blocks.{i}.attention.query_norm", f"blocks.{i}.attention.key_norm"):
                arrays[name] = _interleave(arrays[name][None], config.dim_head)[0]
    return config, {name: np.array(arrays.pop(name), order="C") for name in parameters(config)}


def _check_norm_scale(norm_scale: object) -> None:
    if norm_scale not in (None, *get_args(NormScale)):
        raise UpstreamError(
            f"norm_scale must be plain or plus-one, or left out; got norm_scale={norm_scale!r}. Choose one."
        )


def _warn(told: str) -> None:
    warnings.warn(told, UserWarning, stacklevel=4)


def _match_names(tensors: Mapping[str, np.ndarray], source: str) -> dict[str, str]:
    """The name of each tensor by its place, after checking that none is missing or unknown.

    Some may be missing: the output matrix, as tied tensors may be saved once, a constant inv_freq, and what
    a model of palm-rlhf-pytorch need not have.
    """
    blocks = (re.match(r"(\d+\.fn|layers\.\d+)\.", name) for name in tensors)
    depth = len({block[0] for block in blocks if block})
    names = tensor_names(source, max(1, depth))
    optional = {place for place in names if place in ("unembedding", "inv_freq")}
    if source == RLHF:
        optional |= {
            place for place in names if kind_of(place) in ("inv_freq", "xpos", "query_norm", "key_norm")
        }
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
    rank = 1 if kind_of(place) in _VECTORS else 2
    if array.ndim != rank or not array.size or array.dtype not in DTYPES.values():
        raise UpstreamError(
            f"{name} must have {rank} axes and be one of {', '.join(DTYPES)}; got shape={array.shape}, "
            f"dtype={array.dtype}. Cast the original to float32, or name another source."
        )
    return array.T if not source.startswith("palm_jax") and place != "embedding" else array


def _check(arrays: Arrays, names: Mapping[str, str], config: PaLMConfig) -> None:
    """Raise `UpstreamError` unless all shapes follow from the config and every bias is zero."""
    v, d, inner, e, f = config.num_tokens, config.dim, config.inner_dim, config.dim_head, config.ff_dim
    shapes = {
        "embedding": (v, d),
        "norm": (d,),
        "beta": (d,),
        "inv_freq": (e // 2,),
        "xpos": (e // 2,),
        "query_norm": (e,),
        "key_norm": (e,),
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
    if source in ("palm_pytorch.palm_pytorch", RLHF):
        for name in ("attention.query", "attention.key"):
            parts[name] = _interleave(parts[name], config.dim_head)
    return parts


def _interleave(matrix: np.ndarray, dim_head: int) -> np.ndarray:
    """Bring each head's column pairs (p, p+e/2) to (2p, 2p+1). Shapes: (d, h·e) -> (d, h·e)."""
    pairs = matrix.reshape(len(matrix), -1, 2, dim_head // 2)
    return pairs.swapaxes(-1, -2).reshape(matrix.shape)
