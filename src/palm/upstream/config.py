"""The config of an original, from the shapes of its weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from palm.config import PaLMConfig
from palm.errors import UpstreamError
from palm.presets import PRESETS
from palm.upstream.rlhf import RLHF

# The eps of each original's norms, for weights that come without their model.
_EPS = {
    "palm_pytorch.palm_lite": 1e-8,
    "palm_pytorch.palm_pytorch": 1e-5,
    "palm_jax.palm": 1e-5,
    "palm_jax.palm_lite": 1e-5,
    RLHF: 1e-5,
}


def kind_of(place: str) -> str:
    """What a tensor is, whatever block it is in: norm, fused, out, …"""
    return place.rpartition(".")[-1]


def config_of(
    arrays: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    eps: set[float],
    source: str,
    settings: Mapping[str, Any],
) -> PaLMConfig:
    """The config of the source, with the sizes, eps and frequencies of these weights.

    `arrays` are (in, out) by their place in palm, `names` the original's names of them; `eps` has every eps
    of a live model, `settings` what else it tells. Raises `UpstreamError` if no palm model has such shapes.
    """
    published = PRESETS["conceptofmind/palm-150m" if source == RLHF else source]
    kinds = {kind_of(place) for place in arrays}
    sizes = _sizes(arrays, names, published)
    thetas = {_rope_theta(names[place], arrays[place]) for place in arrays if kind_of(place) == "inv_freq"}
    norm_eps = _only("eps", eps or {_EPS[source]})
    if source == "palm_jax.palm_lite":  # it adds eps to the sum of squares, palm to their mean
        norm_eps /= sizes["dim"]
    output = arrays.get("unembedding")
    changes: dict[str, Any] = {
        **sizes,
        "norm_eps": norm_eps,
        "rope_theta": _only("inv_freq", thetas or {published.rope_theta}),
        "tie_embeddings": output is None or np.array_equal(output.T, arrays["embedding"]),
    }
    if source == RLHF:
        changes |= {
            "positions": "xpos" if "xpos" in kinds else "rotary",
            "qk_norm": "query_norm" in kinds,
            **settings,
        }
    return PaLMConfig.from_dict(published.to_dict() | changes)


def _sizes(
    arrays: Mapping[str, np.ndarray], names: Mapping[str, str], published: PaLMConfig
) -> dict[str, int]:
    """The config's whole numbers, from the shapes of the embedding and of the first block."""
    v, d = arrays["embedding"].shape
    fused, out, down = "blocks.0.fused", "blocks.0.attention.out", "blocks.0.feedforward.down"
    features, inner, f = arrays[fused].shape[1], len(arrays[out]), len(arrays[down])
    kv_heads = 1 if published.share_kv else 2
    e, rest = divmod(features - inner - 2 * f, kv_heads)
    if e < 1 or rest or inner % e or (published.rotates and e % 2):
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
    depth = sum(kind_of(place) == "fused" for place in arrays)
    return {"num_tokens": v, "dim": d, "depth": depth, "heads": inner // e, "dim_head": e, "ff_mult": f // d}


def _rope_theta(name: str, frequencies: np.ndarray) -> float:
    """The θ of frequencies θ^(-2p/e), p = 0 … e/2 − 1: the one of fewest digits that rounds to them.

    palm computes its frequencies in float64. The originals compute theirs in float32, and a cast of the model
    rounds them again.
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
