"""Models of the two original repositories, brought in as palm models: the same function of the same tokens.

Sources: PaLM-pytorch 0.2.2 and PaLM-jax 0.1.2 (PyPI). With m the mean square, about the mean for LayerNorm:

    source                      positions                   norm divides by               keys, values
    palm_pytorch.palm_lite      ALiBi                       RMSNorm, max(sqrt(m), 1e-8)   one tensor
    palm_pytorch.palm_pytorch   rotary, pairs (p, p+e/2)    LayerNorm, sqrt(m + 1e-5)     two
    palm_jax.palm               rotary, pairs (2p, 2p+1)    LayerNorm, sqrt(m + 1e-5)     two
    palm_jax.palm_lite          ALiBi                       RMSNorm, sqrt(m + 1e-5/d)     one tensor

All four keep one projection (d, h·e + e + e + 2f) for q | k | v | up | gate, or (d, h·e + e + 2f) where one
tensor serves as keys and values; torch stores the transpose. f is known from the feed-forward's output
matrix, h·e from the attention's, so the width gives e, and everything is read from shapes.

Letters: d dim, h heads, e dim_head, f ff_mult·dim, v num_tokens, p a rotary pair.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

import ml_dtypes
import numpy as np

from palm.config import Backend, DType, PaLMConfig
from palm.errors import UpstreamError
from palm.models import from_numpy
from palm.presets import PRESETS
from palm.spec.parameters import DTYPES, parameters
from palm.upstream.tensors import read_tensors, tensor_names

if TYPE_CHECKING:
    from palm.backends import JaxModel, Model, TorchModel

Arrays = dict[str, np.ndarray]

# The eps of each original's norms, for weights that come without their model.
_EPS = {
    "palm_pytorch.palm_lite": 1e-8,
    "palm_pytorch.palm_pytorch": 1e-5,
    "palm_jax.palm": 1e-5,
    "palm_jax.palm_lite": 1e-5,
}


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

    `model_or_state` and `source` are those of `read_upstream`, the rest those of `palm.from_numpy`. Neither
    original need be installed. Raises what the two raise.
    """
    config, arrays = read_upstream(model_or_state, source)
    return from_numpy(config, arrays, backend=backend, dtype=dtype, device=device, attention=attention)


def read_upstream(model_or_state: Any, source: str) -> tuple[PaLMConfig, Arrays]:
    """The resolved config, and the weights by canonical name, in canonical layout, copied.

    `source` is one of the four above. `model_or_state` is a live model; its state_dict; its leaves in the
    order of `jax.tree.leaves`; a mapping by dotted attribute path (`layers.0.wi`); or the path of a file:
    `.pt`, `.pth`, `.safetensors`, `.npz` hold mappings, `.eqx` leaves. A live model tells its eps; elsewhere
    the published one is assumed.

    The two jax sources name their tensors alike. Without a live model, weights of one fit the other too if
    h (or e) is even, and give half (or twice) the heads: compare `config.heads` with what you trained.

    Raises `UpstreamError` if the weights are not the source's or a file is damaged, `MissingFrameworkError`
    for a torch file without torch.
    """
    tensors, eps = read_tensors(model_or_state, source)
    names = _match_names(tensors, source)
    arrays = {place: _orient(place, name, tensors[name], source) for place, name in names.items()}
    config = _config(arrays, names, eps, source)
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


def _kind(place: str) -> str:
    return place.rpartition(".")[-1]


def _orient(place: str, name: str, array: np.ndarray, source: str) -> np.ndarray:
    """The array as (in, out), checked for rank and dtype; torch's Linear stores the transpose."""
    rank = 1 if _kind(place) in ("norm", "beta", "inv_freq") else 2
    if array.ndim != rank or not array.size or array.dtype not in DTYPES.values():
        raise UpstreamError(
            f"{name} must have {rank} axes and be one of {', '.join(DTYPES)}; got shape={array.shape}, "
            f"dtype={array.dtype}. Cast the original to float32, or name another source."
        )
    return array.T if source.startswith("palm_pytorch") and place != "embedding" else array


def _config(arrays: Arrays, names: Mapping[str, str], eps: set[float], source: str) -> PaLMConfig:
    """The source's config with the sizes, eps and frequencies of these weights."""
    published = PRESETS[source]
    sizes = _sizes(arrays, names, published)
    thetas = {_rope_theta(names[place], arrays[place]) for place in arrays if _kind(place) == "inv_freq"}
    norm_eps = _only("eps", eps or {_EPS[source]})
    if source == "palm_jax.palm_lite":  # its eps joins the sum of squares, palm's joins their mean
        norm_eps /= sizes["dim"]
    output = arrays.get("unembedding")
    changes = {
        **sizes,
        "norm_eps": norm_eps,
        "rope_theta": _only("inv_freq", thetas or {published.rope_theta}),
        "tie_embeddings": output is None or np.array_equal(output.T, arrays["embedding"]),
    }
    return PaLMConfig.from_dict(published.to_dict() | changes)


def _sizes(arrays: Arrays, names: Mapping[str, str], published: PaLMConfig) -> dict[str, int]:
    """The config's whole numbers, from the shapes of the embedding and of the first block."""
    v, d = arrays["embedding"].shape
    fused, out, down = "blocks.0.fused", "blocks.0.attention.out", "blocks.0.feedforward.down"
    features, inner, f = arrays[fused].shape[1], len(arrays[out]), len(arrays[down])
    kv_heads = 1 if published.share_kv else 2
    e, rest = divmod(features - inner - 2 * f, kv_heads)
    if e < 1 or rest or inner % e or (published.positions == "rotary" and e % 2):
        raise UpstreamError(
            f"{names[fused]} must map to h·e + {kv_heads}·e + 2f features with whole h and e, e even if "
            f"rotary; got features={features} with h·e={inner} ({names[out]}), f={f} ({names[down]}). "
            "Name the source that it comes from."
        )
    if f % d:
        raise UpstreamError(
            f"{names[down]} must map a whole multiple of dim={d} features; got f={f}. "
            "There is no such palm model."
        )
    depth = sum(_kind(place) == "fused" for place in arrays)
    return {"num_tokens": v, "dim": d, "depth": depth, "heads": inner // e, "dim_head": e, "ff_mult": f // d}


def _rope_theta(name: str, frequencies: np.ndarray) -> float:
    """The θ of frequencies θ^(-2p/e), p = 0 … e/2 − 1: the roundest that explains them to their rounding.

    palm forms its own in float64. The originals form theirs in float32, and a cast of the model rounds them.
    """
    pairs = len(frequencies)
    exponents = -np.arange(pairs) / pairs
    tolerance = max(16 * float(np.finfo(np.float32).eps), float(ml_dtypes.finfo(frequencies.dtype).eps))
    given = frequencies.astype(np.float64)
    with np.errstate(all="ignore"):
        estimate = float(given[-1] ** (1 / exponents[-1])) if pairs > 1 else 10_000.0
    for theta in (10_000.0, float(f"{estimate:.4g}"), estimate):
        if 1 < theta < np.inf and np.allclose(given, theta**exponents, rtol=tolerance, atol=0):
            return theta
    raise UpstreamError(
        f"{name} must be the geometric series θ^(-2p/e); got {name}[:4]={given[:4].tolist()}. "
        "Compute the buffer anew if the model was cast to a narrower dtype and back."
    )


def _only(field: str, values: Collection[float]) -> float:
    if len(values) > 1:
        raise UpstreamError(
            f"{field} must be the same throughout the model; got {field}={sorted(values)}. "
            "There is no such palm model."
        )
    return next(iter(values))


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
        shape = shapes[_kind(place)]
        if array.shape != shape:
            raise UpstreamError(
                f"{names[place]} must have (in, out) shape {shape}, like the rest of the model; got "
                f"shape={array.shape}. Use weights that belong together."
            )
        if _kind(place) == "beta" and array.any():
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
