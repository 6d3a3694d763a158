"""Whether what a bundle holds can be a recording: which arrays of what shapes follows from its config."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from palm.config import PaLMConfig
from palm.errors import BundleError, ConfigError
from palm.files.schema import SHA256
from palm.parity.recording.excerpt import Excerpt
from palm.parity.recording.recording import Recording
from palm.parity.recording.sketch import begins, sketch_shape
from palm.spec.parameters import check_array, check_names, parameters
from palm.spec.taps import kind_of, tap_names
from palm.spec.tokens import check_tokens

_STATISTICS: dict[str, tuple[type, ...]] = {
    "shape": (list,),
    "rms": (int, float, str),
    "largest": (int, float, str),
    "not_finite": (int,),
}
# Where an array is, its name, the array if it is there, and what it must be.
Expected = tuple[str, str, np.ndarray | None, tuple[int, ...], str]


def check_recording(recording: Recording | Excerpt) -> None:
    """Raise what the parts of a recording raise unless they fit its config and each other."""
    config = recording.config
    table = parameters(config)
    if isinstance(recording.label, str) and not recording.label.isprintable():
        raise BundleError("must have a label that can be printed; it does not have one. Record again.")
    for name, kinds in (("label", str), ("environment", dict), ("dtype", str)):
        if not isinstance(getattr(recording, name), kinds):
            raise BundleError(f"must have a {name} of the right kind; it does not have one. Record again.")
    if not all(isinstance(value, str) for value in recording.environment.values()):
        raise BundleError("must have an environment of texts; it does not have one. Record again.")
    check_tokens(recording.tokens, config, at_least=2)
    for where, name, array, shape, dtype in _array_shapes(recording):
        if array is None or array.shape != shape or array.dtype.name != dtype:
            got = "none" if array is None else f"{array.dtype.name}{list(array.shape)}"
            raise BundleError(f"{where}/{name} must be {dtype}{list(shape)}; got {got}. Record again.")
    if isinstance(recording, Recording):
        check_names(config, recording.weights)
        for name, parameter in table.items():
            check_array(parameter, recording.weights[name])
    else:
        _check_excerpt(recording)


def _check_excerpt(recording: Excerpt) -> None:
    table = parameters(recording.config)
    if not isinstance(recording.digests, dict) or recording.digests.keys() != table.keys():
        raise BundleError("must have a digest of each weight; it does not have them. Record again.")
    if not all(map(SHA256.fits, recording.digests.values())):
        raise BundleError("must have digests that are SHA-256; it does not have them. Record again.")
    if recording.seed is not None and (isinstance(recording.seed, bool) or not _is_natural(recording.seed)):
        raise BundleError(
            f"must have a seed of at least 0 or none; got seed={recording.seed!r}. Record again."
        )
    for name, tap in recording.taps.items():
        if not begins(tap, recording.sketches[name], recording.tokens.size, name):
            raise BundleError(f"taps/{name} must match its sketch; it does not. Record again.")
    for name in _checked_statistics(recording):
        row = recording.statistics[name]
        for key in ("rms", "largest"):
            row[key] = number(row[key], f"statistics of {name}")


def _checked_statistics(excerpt: Excerpt) -> Iterator[str]:
    statistics: Any = excerpt.statistics
    if not isinstance(statistics, dict) or statistics.keys() != excerpt.sketches.keys():
        raise BundleError("must have statistics of each sketch; it does not have them. Record again.")
    for name, row in statistics.items():
        fits = isinstance(row, dict) and SHA256.fits(row.get("sha256"))
        fits = fits and all(
            isinstance(row.get(key), kinds) and not isinstance(row.get(key), bool)
            for key, kinds in _STATISTICS.items()
        )
        if not fits or not all(map(_is_natural, row["shape"])):
            raise BundleError(f"must have whole statistics of {name}; it does not have them. Record again.")
        yield name


def _is_natural(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def number(value: Any, what: str) -> float:
    """What JSON holds of a number; what is not finite is text. Raises `ConfigError` for anything else."""
    try:
        read = float(value)
    except (TypeError, ValueError, OverflowError):
        read = math.nan
        value = None
    if value is None or isinstance(value, bool) or (isinstance(value, str) and math.isfinite(read)):
        raise ConfigError(f"{what} must be a number; got {value!r}.")
    return read


def tap_widths(config: PaLMConfig) -> dict[str, int]:
    """The last axis of every tap, by name, in dataflow order."""
    inner, head = config.inner_dim, config.dim_head
    own = {"q": inner, "k": head, "v": head, "attention": inner, "feedforward": config.ff_dim}
    own["logits"] = config.num_tokens
    return {name: own.get(kind_of(name), config.dim) for name in tap_names(config.depth)}


def _array_shapes(recording: Recording | Excerpt) -> Iterator[Expected]:
    """Every array that must be there. Raises `BundleError` for one that must not."""
    return _of_recording(recording) if isinstance(recording, Recording) else _of_excerpt(recording)


def _of_recording(recording: Recording) -> Iterator[Expected]:
    shape, dtype = recording.tokens.shape, recording.dtype
    taps = {name: (*shape, width) for name, width in tap_widths(recording.config).items()}
    weights = {name: parameter.shape for name, parameter in parameters(recording.config).items()}
    yield from _group("weights", recording.weights, weights, dtype)
    yield from _group("taps", recording.taps, taps, dtype)
    yield from _group("grads", recording.grads, weights, dtype)
    yield from _group("exact_taps", recording.exact_taps, taps, "float64")
    yield from _group("exact_grads", recording.exact_grads, weights, "float64")


def _of_excerpt(excerpt: Excerpt) -> Iterator[Expected]:
    widths = tap_widths(excerpt.config)
    n, shape = excerpt.tokens.shape[-1], excerpt.tokens.shape
    taps = {name: sketch_shape((*shape, width), is_tap=True) for name, width in widths.items()}
    grads = {
        f"grad:{name}": sketch_shape(parameter.shape, is_tap=False)
        for name, parameter in parameters(excerpt.config).items()
    }
    exact = {**taps, **grads} if excerpt.exact_sketches.keys() - taps.keys() else taps
    yield from _group("sketches", excerpt.sketches, {**taps, **grads}, "float64")
    yield from _group("exact_sketches", excerpt.exact_sketches, exact, "float64")
    if excerpt.taps:
        embed = excerpt.taps.get("embed")
        length = embed.shape[0] if embed is not None and embed.ndim and 2 <= embed.shape[0] <= n else 2
        beginning = {name: (length, width) for name, width in widths.items()}
        yield from _group("taps", excerpt.taps, beginning, excerpt.dtype)


def _group(
    where: str, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], dtype: str
) -> Iterator[Expected]:
    for name in arrays:
        if name not in shapes:
            raise BundleError(f"{where} must have only what the config has; got {name}. Record again.")
    for name, shape in shapes.items():
        yield where, name, arrays.get(name), tuple(shape), dtype
