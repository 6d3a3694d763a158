"""The referee's program cut into operations, one a tap: each can be replaced, and run from any input.

An operation is a function of a `Place`, which knows the config, the weights by their names at that place, and
the taps before. `referee(tap)` gives the specification's own. With a side's recorded taps as inputs, it says
what the side's next tap should be, whatever went wrong upstream.

Letters: n sequence, d dim, h heads, e dim_head, v num_tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from palm.config import PaLMConfig
from palm.spec import forward as reference
from palm.spec.forward import gated, merge_heads
from palm.spec.taps import tap_names

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Place:
    """Where an operation stands: `prefix` is `blocks.3.` in a block, empty outside; `taps` what is known."""

    config: PaLMConfig
    weights: Arrays
    taps: Arrays
    tokens: np.ndarray
    prefix: str

    def weight(self, name: str) -> np.ndarray:
        """A weight by its name at this place, float64."""
        return np.asarray(self.weights[self.prefix + name], np.float64)

    def tap(self, name: str) -> np.ndarray:
        """A tap by its name at this place, float64."""
        return np.asarray(self.taps[self.prefix + name], np.float64)

    @property
    def residual(self) -> np.ndarray:
        """The residual stream that comes in here: the embedding, or what the block before gave out."""
        depth = self.config.depth if not self.prefix else int(self.prefix.split(".")[1])
        return np.asarray(self.taps["embed" if depth == 0 else f"blocks.{depth - 1}.out"], np.float64)


Operation = Callable[[Place], np.ndarray]


def embed(at: Place) -> np.ndarray:
    """The rows of the embedding."""
    return at.weight("embedding")[at.tokens]


def norm(at: Place) -> np.ndarray:
    """The block's norm, or the last one, of the residual stream."""
    return reference.normalise(at.residual, at.weight("norm"), at.config)


def project(at: Place, kind: str) -> np.ndarray:
    """Queries (..., h, n, e), keys or values (..., n, e), before the position step."""
    if kind != "query" and at.config.share_kv:
        kind = "key_value"
    x = at.tap("norm") @ at.weight(f"attention.{kind}")
    return split_heads(x, at.config) if kind == "query" else x


def queries(at: Place) -> np.ndarray:
    """The tap q: heads merged."""
    x = project(at, "query")
    return merge_heads(reference.rotate(x, at.config) if at.config.positions == "rotary" else x)


def keys(at: Place) -> np.ndarray:
    """The tap k."""
    x = project(at, "key")
    return reference.rotate(x, at.config) if at.config.positions == "rotary" else x


def values(at: Place) -> np.ndarray:
    """The tap v."""
    return project(at, "value")


def attend(at: Place) -> np.ndarray:
    """The tap attention."""
    return attend_with(at, reference.position_bias(at.tokens.shape[-1], at.config))


def attend_with(at: Place, bias: np.ndarray, scale: float | None = None) -> np.ndarray:
    """Attention from the taps q, k, v with another bias (h, n, n), or another scale than e^-1/2."""
    q, k, v = split_heads(at.tap("q"), at.config), at.tap("k")[..., None, :, :], at.tap("v")[..., None, :, :]
    scale = at.config.dim_head**-0.5 if scale is None else scale
    return merge_heads(reference.softmax(scale * q @ k.swapaxes(-1, -2) + bias) @ v)


def attention_out(at: Place) -> np.ndarray:
    """The tap attention_out."""
    return at.tap("attention") @ at.weight("attention.out")


def feedforward(at: Place) -> np.ndarray:
    """The tap feedforward: the gated product."""
    return gated(at.tap("norm") @ at.weight("feedforward.gate"), at.tap("norm") @ at.weight("feedforward.up"))


def feedforward_out(at: Place) -> np.ndarray:
    """The tap feedforward_out."""
    return at.tap("feedforward") @ at.weight("feedforward.down")


def out(at: Place) -> np.ndarray:
    """The residual stream behind the block."""
    return at.residual + at.tap("attention_out") + at.tap("feedforward_out")


def logits(at: Place) -> np.ndarray:
    """The output layer."""
    return at.tap("norm") @ reference.output_matrix(at.config, at.weights) * at.config.logit_scale


REFEREE: Mapping[str, Operation] = {
    "embed": embed,
    "norm": norm,
    "q": queries,
    "k": keys,
    "v": values,
    "attention": attend,
    "attention_out": attention_out,
    "feedforward": feedforward,
    "feedforward_out": feedforward_out,
    "out": out,
    "logits": logits,
}


def place(
    tap: str, config: PaLMConfig, weights: Arrays, taps: Arrays, tokens: np.ndarray
) -> tuple[str, Place]:
    """The name of a tap's operation, and its place."""
    prefix, _, kind = tap.rpartition(".")
    return kind, Place(config, weights, taps, tokens, f"{prefix}." if prefix else "")


def run(
    config: PaLMConfig, weights: Arrays, tokens: np.ndarray, changed: Mapping[str, Operation]
) -> dict[str, np.ndarray]:
    """Every tap of the program with some operations replaced, in every block alike."""
    wide = {name: np.asarray(array, np.float64) for name, array in weights.items()}
    operations = {**REFEREE, **changed}
    taps: dict[str, np.ndarray] = {}
    for name in tap_names(config.depth):
        kind, at = place(name, config, wide, taps, tokens)
        taps[name] = operations[kind](at)
    return taps


def split_heads(x: np.ndarray, config: PaLMConfig) -> np.ndarray:
    """(..., n, h·e) -> (..., h, n, e)."""
    return x.reshape(*x.shape[:-1], config.heads, config.dim_head).swapaxes(-2, -3)
