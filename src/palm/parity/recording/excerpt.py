"""A compact summary of a recording, which still tells two functions apart.

- Of each tap and gradient, its shape, rms, largest element, count of what is not finite, and SHA-256.
- Of each tap, at up to 512 positions of all sequences, and of each gradient, a sketch
  (`recording.sketch`), and that of the same program in float64: how far two sides are apart over all
  elements there, and whether that is more than their rounding.
- Of the beginning of the first sequence, every tap whole. Attention is causal: these are the taps of a
  shorter text, and all that `palm.parity.explain.diagnose` needs to say why.

Letters: n sequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from palm.backends import backend_of, config_of, dtype_of, model_of, wing_of
from palm.config import DType, PaLMConfig
from palm.errors import WeightsError
from palm.parity.recording.checksums import digest_of, each
from palm.parity.recording.checksums import statistics as describe
from palm.parity.recording.recording import (
    Mode,
    OnStep,
    Recording,
    digest,
    environment_of,
    quietly,
)
from palm.parity.recording.sketch import sketch_gradient, sketch_tap
from palm.spec.arrays import Named
from palm.spec.initial import DRAWS, Draw, initial_value
from palm.spec.parameters import numpy_dtype, parameters
from palm.spec.tokens import check_tokens

# Of a model of more parameters, the gradient in float64 would take longer than all the rest.
_MOST_EXACT = 2**27
# The beginning: at most so many positions, and bytes.
_LONGEST_BEGINNING, _BEGINNING_BYTES = 64, 32 * 2**20
# Weights that are drawn again are kept for about a block.
_KEPT_WEIGHTS = 12


@dataclass(frozen=True, eq=False)
class Excerpt:
    """What one side computed in one forward and backward pass, cut down: see the module.

    `taps`: of the first positions of the first sequence, in working precision. `sketches`: by tap, and by
    `grad:NAME`; `exact_sketches`: those of the same program in float64, of a large model's taps only.
    `statistics`: by the same names. `digests`: SHA-256 of each weight. `seed`: what the
    weights were drawn from, if from a seed. `weights` are no part of a bundle: `with_weights` adds them.
    """

    label: str
    config: PaLMConfig
    dtype: DType
    tokens: np.ndarray
    digests: dict[str, str]
    seed: int | None
    statistics: dict[str, dict[str, Any]] = field(repr=False)
    taps: Named = field(repr=False)
    sketches: Named = field(repr=False)
    exact_sketches: Named = field(repr=False)
    loss: float
    environment: dict[str, str]
    weights: Mapping[str, np.ndarray] | None = field(default=None, repr=False)

    @property
    def weights_digest(self) -> str:
        """SHA-256 over all weights, names and bits."""
        return digest(self.digests)

    @property
    def draw(self) -> Draw:
        """How `seed` gave the weights: version 0.1.0 drew each matrix as a whole."""
        return _draw_of(self.config, self.seed or 0, self.dtype, self.digests)

    @property
    def beginning(self) -> Recording | None:
        """The recording of the first positions, of which every tap is there; None without weights or taps."""
        weights = self.weights
        if weights is None and self.seed is not None:
            weights = Drawn(self.config, self.seed, self.dtype, self.digests)
        if weights is None or not self.taps:
            return None
        length = self.taps["embed"].shape[-2]
        return Recording(
            label=self.label,
            config=self.config,
            dtype=self.dtype,
            tokens=first_row(self.tokens)[:length],
            weights=weights,
            taps=self.taps,
            grads={},
            loss=math.nan,
            exact_taps={},
            exact_grads={},
            exact_loss=math.nan,
            environment=self.environment,
        )

    def with_weights(self, weights: Mapping[str, np.ndarray]) -> Excerpt:
        """With the weights it was recorded from, of its dtype or wider. Raises `WeightsError` for others."""
        narrow = {name: array.astype(numpy_dtype(self.dtype)) for name, array in weights.items()}
        for name, expected in self.digests.items():
            if name not in narrow or digest_of(narrow[name]) != expected:
                raise WeightsError(
                    f"weights must be those that {self.label} was recorded from; got others for {name}. "
                    "Pass that checkpoint."
                )
        return replace(self, weights=narrow)


class Drawn(Mapping[str, np.ndarray]):
    """Weights drawn from a seed when they are asked for, a few kept: a model need not fit into memory.

    Raises `WeightsError` where what the seed gives is not what was recorded.
    """

    def __init__(self, config: PaLMConfig, seed: int, dtype: DType, digests: Mapping[str, str]) -> None:
        self._table, self._digests = parameters(config), digests
        draw = _draw_of(config, seed, dtype, digests)
        self._draw = lru_cache(maxsize=_KEPT_WEIGHTS)(lambda name: self._checked(name, seed, dtype, draw))

    def __getitem__(self, name: str) -> np.ndarray:
        return self._draw(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def _checked(self, name: str, seed: int, dtype: DType, draw: Draw) -> np.ndarray:
        drawn = initial_value(self._table[name], seed, dtype, draw)
        if digest_of(drawn) != self._digests[name]:
            raise WeightsError(
                f"{name} must be the weight that seed {seed} gives; got another one. Pass the checkpoint."
            )
        return drawn


def _draw_of(config: PaLMConfig, seed: int, dtype: DType, digests: Mapping[str, str]) -> Draw:
    """The draw that gives the largest weight; today's, if none does."""
    largest = max(parameters(config).values(), key=lambda parameter: parameter.size)
    given = digests[largest.name]
    found = (draw for draw in DRAWS if digest_of(initial_value(largest, seed, dtype, draw)) == given)
    return next(found, DRAWS[0])


def record_excerpt(
    model: Any,
    tokens: Any,
    *,
    label: str | None = None,
    mode: Mode | None = None,
    seed: int | None = None,
    on_step: OnStep = quietly,
) -> Excerpt:
    """Record a live model; gradients are cut down before taps are computed, and those before float64 is.

    Costs, beside one forward and backward pass, a forward pass for the taps and one in float64, for which the
    weights are upcast; of a model of up to 2²⁷ parameters also its gradient in float64. Raises `TokenError`,
    and `BackendError` if the model is not palm's.
    """
    wing, mode = wing_of(model), mode or Mode()
    model = wing.settled(model_of(model))
    ids = check_tokens(tokens, config_of(model), at_least=2)
    statistics: dict[str, dict[str, Any]] = {}
    sketches: dict[str, np.ndarray] = {}
    loss, grads = wing.value_and_grad(model, ids, **mode.backward, copied=False)
    statistics |= {f"grad:{name}": row for name, row in each(describe, grads).items()}
    sketches |= _sketches(grads, "grad:")
    del grads  # each group is as large as the model
    on_step("gradients")
    taps = wing.activations(model, ids, **mode.forward)
    beginning = _beginning(taps)
    statistics |= each(describe, taps)
    sketches |= _sketches(taps)
    del taps
    on_step("forward")
    with wing.widened(model) as wide:
        exact = _sketches(wing.activations(wide, ids, **mode.forward))
        on_step("float64 forward")
        if sum(parameter.size for parameter in parameters(config_of(model)).values()) <= _MOST_EXACT:
            exact |= _sketches(wing.value_and_grad(wide, ids, **mode.backward, copied=False)[1], "grad:")
    on_step("float64 gradients")
    weights = wing.to_arrays(model, copied=False)
    return Excerpt(
        label=label or backend_of(model),
        config=config_of(model),
        dtype=dtype_of(model),
        tokens=ids,
        digests=each(digest_of, weights),
        seed=seed,
        statistics=statistics,
        taps=beginning,
        sketches=sketches,
        exact_sketches=exact,
        loss=loss,
        environment=environment_of(model, mode),
    )


def excerpt_of(recording: Recording) -> Excerpt:
    """A complete recording cut down, so that it can be compared with an excerpt."""
    grads = {f"grad:{name}": gradient for name, gradient in recording.grads.items()}
    return Excerpt(
        label=recording.label,
        config=recording.config,
        dtype=recording.dtype,
        tokens=recording.tokens,
        digests=each(digest_of, recording.weights),
        seed=None,
        statistics=each(describe, {**recording.taps, **grads}),
        taps=_beginning(recording.taps),
        sketches=_sketches(recording.taps) | _sketches(recording.grads, "grad:"),
        exact_sketches=_sketches(recording.exact_taps) | _sketches(recording.exact_grads, "grad:"),
        loss=recording.loss,
        environment=recording.environment,
        weights=recording.weights,
    )


def first_row(x: np.ndarray, trailing: int = 1) -> np.ndarray:
    """The first of all sequences: (..., n) -> (n,); with two `trailing` axes (..., n, w) -> (n, w)."""
    return x.reshape(-1, *x.shape[x.ndim - trailing :])[0]


def _sketches(arrays: Named, prefix: str = "") -> dict[str, np.ndarray]:
    """Of taps, or of gradients, whose names then start with `grad:`."""
    make = sketch_gradient if prefix else sketch_tap
    return {f"{prefix}{name}": make(array, name) for name, array in arrays.items()}


def _beginning(taps: Named) -> Named:
    """Every tap at the first positions of the first sequence: as many as are worth their bytes."""
    rows = {name: first_row(tap, 2) for name, tap in taps.items()}
    bytes_a_position = sum(row[0].nbytes for row in rows.values())
    length = min(rows["embed"].shape[0], _LONGEST_BEGINNING, _BEGINNING_BYTES // bytes_a_position)
    return {name: row[:length].copy() for name, row in rows.items()} if length >= 2 else {}
