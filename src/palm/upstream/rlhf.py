"""What weights of palm-rlhf-pytorch, and files of them, have beside what the other originals have.

Source: palm-rlhf-pytorch 0.2.1 and 0.8.0 (PyPI), the program of the public PaLM weights, conceptofmind/PaLM.
Its LayerNorm changed in 0.2.4: the scale was gamma, and has been gamma + 1 since. Old files load into the
new program without an error. Before 0.2.1 it left the norm before the logits out.

Letters: d dim, e dim_head, p a rotary pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import ml_dtypes
import numpy as np

from palm.errors import UpstreamError
from palm.spec.parameters import DTYPES

RLHF = "palm_rlhf_pytorch"
NormScale = Literal["plain", "plus-one"]
Tell = Callable[[str], None]

_EMBEDDING = "token_emb.weight"
# What torch.compile and DataParallel put into names.
_WRAPPERS = ("_orig_mod", "module")


def unwrapped(given: Mapping[str, Any]) -> dict[str, Any]:
    """The weights by their own names: out of a trainer's dictionary, without the prefixes of wrappers.

    Raises `UpstreamError` if there are none, several models, or LoRA scopes.
    """
    found = _weights_in(given)
    names = {name: _without_wrappers(name) for name in found}
    ends = [name.removesuffix(_EMBEDDING) for name in names.values() if name.endswith(_EMBEDDING)]
    if len(set(ends)) > 1:
        raise UpstreamError(
            f"weights must be those of one model; got those under {', '.join(map(repr, sorted(set(ends))))}. "
            "Pass the part of the dictionary that belongs to one."
        )
    prefix = ends[0] if ends else ""
    clean = {name.removeprefix(prefix): found[key] for key, name in names.items()}
    if len(clean) < len(found):
        raise UpstreamError(
            f"weights must have each name once; got {len(found) - len(clean)} of them with the prefix of a "
            f"wrapper ({', '.join(_WRAPPERS)}) and without. Pass the state_dict of one model."
        )
    scopes = sorted({name.split(".")[1] for name in clean if name.startswith("finetune_modules.")})
    if scopes:
        raise UpstreamError(
            f"weights must have no LoRA scopes; got finetune_modules.{', '.join(scopes)}. Merge one with "
            f'model.merge_finetune_params("{scopes[0]}") and save again, or leave the names that begin with '
            "finetune_modules out, for the model without them."
        )
    return clean


def _weights_in(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The mapping itself, or the one in it that has an embedding: {"model": …, "optimizer": …}."""
    if _has_embedding(given):
        return given
    inside = {name: value for name, value in given.items() if isinstance(value, Mapping)}
    holding = [name for name, value in inside.items() if _has_embedding(value)]
    if len(holding) == 1:
        return inside[holding[0]]
    told = f"several: {', '.join(holding)}" if holding else f"the keys {', '.join(map(str, [*given][:6]))}"
    raise UpstreamError(
        f"weights must be one mapping with {_EMBEDDING}; got {told}. Pass the state_dict of the model."
    )


def _has_embedding(given: Mapping[str, Any]) -> bool:
    return any(str(name).endswith(_EMBEDDING) for name in given)


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in str(name).split(".") if part not in _WRAPPERS)


def settings(model: Any) -> dict[str, Any]:
    """What a live model has that its weights do not tell: whether it has xPos, and the base of that.

    Raises `UpstreamError` for one that is not causal.
    """
    if not hasattr(model, "modules"):
        return {}
    rotary = [module for module in model.modules() if hasattr(module, "use_xpos")]
    if any(getattr(module, "causal", True) is False for module in model.modules()):
        raise UpstreamError("causal must be True; got causal=False. There is no such palm model.")
    found = {(module.use_xpos, float(module.scale_base)) for module in rotary}
    if len(found) > 1:
        raise UpstreamError(
            f"use_xpos and scale_base must be the same throughout the model; got {sorted(found)}. "
            "There is no such palm model."
        )
    return {
        name: value
        for has_xpos, base in found
        for name, value in (("positions", "xpos" if has_xpos else "rotary"), ("xpos_base", base))
    }


def cleaned(
    tensors: Mapping[str, np.ndarray], norm_scale: NormScale | None, tell: Tell
) -> dict[str, np.ndarray]:
    """The weights with scales in place of gammas, and frequencies in the dtype that they are rounded to.

    `tell` is told what was decided by the values, and what does not come along. Raises `UpstreamError` if
    the values do not say which convention the norms have, for factors that are not xPos's, or where some
    blocks alone have norms of queries and keys.
    """
    tensors = dict(tensors)
    _check_vectors(tensors)
    _check_xpos(tensors)
    normed = [sum(name.endswith(f".fn.{which}_scale") for name in tensors) for which in "qk"]
    if any(normed) and {*normed} != {sum(name.endswith(".fn.norm.gamma") for name in tensors)}:
        raise UpstreamError(
            f"q_scale and k_scale must be in all blocks or in none; got {normed[0]} and {normed[1]}. "
            "Use weights that belong together."
        )
    _round_frequencies(tensors, tell)
    gammas = {name: array for name, array in tensors.items() if name.endswith("norm.gamma")}
    last = gammas.get("norm.gamma", np.ones(1))
    if len(last) > 1 and (last == last[0]).all() and any((g != g[0]).any() for g in gammas.values()):
        tell(
            "norm.gamma is one number throughout, unlike those of the blocks. palm-rlhf-pytorch before 0.2.1 "
            "left the last norm out and did not train it; palm applies it."
        )
    if _convention(gammas, norm_scale, tell) == "plus-one":
        for name, gamma in gammas.items():
            tensors[name] = (gamma + np.ones((), gamma.dtype)).astype(gamma.dtype)
    return tensors


def _check_vectors(tensors: Mapping[str, np.ndarray]) -> None:
    """Raise `UpstreamError` unless what is computed with here are vectors of numbers."""
    for name, array in tensors.items():
        if not name.endswith(("norm.gamma", ".rotary_emb.inv_freq", ".rotary_emb.scale")):
            continue
        if array.ndim != 1 or not array.size or array.dtype not in DTYPES.values():
            raise UpstreamError(
                f"{name} must be a vector of {', '.join(DTYPES)}; got shape={array.shape}, "
                f"dtype={array.dtype}. Cast the original to float32."
            )
        if not np.isfinite(array).all():
            raise UpstreamError(
                f"{name} must be finite; got {np.count_nonzero(~np.isfinite(array))} numbers that are not. "
                "Go back to weights from before the run diverged."
            )


def _convention(gammas: Mapping[str, np.ndarray], given: NormScale | None, tell: Tell) -> NormScale:
    """What the user says, or what the means say: near 1 the scale is gamma, near 0 it is gamma + 1."""
    if given is not None:
        return given
    means = [float(np.mean(gamma, dtype=np.float64)) for gamma in gammas.values()]
    low, high = (min(means), max(means)) if means else (1.0, 1.0)
    if low < 0.5 <= high:
        raise UpstreamError(
            f"norm_scale must be given where the means of gamma are on both sides of 1/2; got means from "
            f'{low:.3g} to {high:.3g}. Pass norm_scale="plain" (palm import: --norm-scale plain) for weights '
            'of palm-rlhf-pytorch before 0.2.4, "plus-one" for later ones.'
        )
    found: NormScale = "plain" if low >= 0.5 else "plus-one"
    scale, versions = ("gamma", "before 0.2.4") if found == "plain" else ("gamma + 1", "since 0.2.4")
    tell(
        f"norm_scale={found}: gamma is {low:.3g} to {high:.3g} in the mean, so the scale of a norm is "
        f"{scale}, as in palm-rlhf-pytorch {versions}."
    )
    return found


def _check_xpos(tensors: Mapping[str, np.ndarray]) -> None:
    """Raise `UpstreamError` unless each buffer holds s_p = (2p + 0.4e) / 1.4e, to the roundings of a cast."""
    for name, array in tensors.items():
        if not name.endswith(".rotary_emb.scale"):
            continue
        e = 2 * array.size
        exact = (np.arange(0, e, 2) + 0.4 * e) / (1.4 * e)
        rounding = float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps)
        if not np.allclose(array.astype(np.float64), exact, rtol=rounding, atol=0):
            raise UpstreamError(
                f"{name} must be (2p + 0.4e) / 1.4e, which is all that the program makes it; got "
                f"{name}[:4]={array.ravel()[:4].tolist()}. Leave the buffer out for rotary without xPos."
            )


def _round_frequencies(tensors: dict[str, np.ndarray], tell: Tell) -> None:
    """Say of frequencies that they are rounded to bfloat16, in whatever dtype they are stored."""
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    rounded = []
    for name in _frequencies(tensors):
        narrow = tensors[name].astype(bfloat16)
        if narrow.size > 1 and (narrow.astype(tensors[name].dtype) == tensors[name]).all():
            tensors[name] = narrow
            rounded.append(name)
    if rounded:
        tell(
            f"{rounded[0]} is rounded to bfloat16, as a cast of the model leaves it. palm computes the "
            "frequencies anew: far positions differ from a program that goes on with the rounded ones."
        )


def _frequencies(tensors: Iterable[str]) -> list[str]:
    return [name for name in tensors if name.endswith(".rotary_emb.inv_freq")]
