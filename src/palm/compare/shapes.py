"""Which arrays a recording must have, and of what shape and dtype: a consequence of its config and tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from palm.compare.excerpt import Excerpt, sketch_shape
from palm.compare.probe import Arrays, Recording
from palm.config import PaLMConfig
from palm.errors import BundleError
from palm.params import parameters
from palm.taps import tap_names

# Where an array is, its name, the array if it is there, and what it must be.
Expected = tuple[str, str, np.ndarray | None, tuple[int, ...], str]


def tap_widths(config: PaLMConfig) -> dict[str, int]:
    """The last axis of every tap, by name, in dataflow order."""
    inner, head = config.inner_dim, config.dim_head
    own = {"q": inner, "k": head, "v": head, "attention": inner, "feedforward": config.ff_dim}
    own["logits"] = config.num_tokens
    return {name: own.get(name.rpartition(".")[2], config.dim) for name in tap_names(config.depth)}


def array_shapes(recording: Recording | Excerpt) -> Iterator[Expected]:
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
    n = excerpt.tokens.shape[-1]
    taps = {name: sketch_shape((n, width), is_tap=True) for name, width in widths.items()}
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
    where: str, arrays: Arrays, shapes: Mapping[str, tuple[int, ...]], dtype: str
) -> Iterator[Expected]:
    for name in arrays:
        if name not in shapes:
            raise BundleError(f"{where} must have only what the config has; got {name}. Record again.")
    for name, shape in shapes.items():
        yield where, name, arrays.get(name), tuple(shape), dtype
