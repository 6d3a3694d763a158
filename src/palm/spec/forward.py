"""The referee: PaLM's forward pass in NumPy float64, a program of named operations. It is the specification.

Each operation computes one tap from those before it: so it can be replaced, or run on what a side recorded.
Letters: n sequence, d dim, h heads, e dim_head, f ff_mult·dim, v num_tokens. Source: arXiv:2204.02311 §2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Inexact

from palm.config import PaLMConfig
from palm.spec import functions
from palm.spec.arrays import Named
from palm.spec.parameters import checked_weights, upcast
from palm.spec.taps import kind_of, tap_names
from palm.spec.tokens import check_tokens, checked_beside

Segments = np.ndarray | None


@dataclass(frozen=True)
class Place:
    """Where an operation stands, and what it reads. `prefix` is `blocks.3.` in block 3, empty outside."""

    config: PaLMConfig
    weights: Named
    taps: Named
    tokens: np.ndarray
    prefix: str
    segments: Segments = None

    def weight(self, name: str) -> np.ndarray:
        """A weight by its name at this place, float64. Every matrix is applied from the right."""
        return upcast(self.weights[self.prefix + name])

    def tap(self, name: str) -> np.ndarray:
        """A tap by its name at this place, float64."""
        return upcast(self.taps[self.prefix + name])

    @property
    def residual(self) -> Inexact[np.ndarray, "... {self.config.dim}"]:
        """The residual stream that comes in, (..., n, d): the embedding, or the block before's `out`."""
        blocks = int(self.prefix.split(".")[1]) if self.prefix else self.config.depth
        return upcast(self.taps[f"blocks.{blocks - 1}.out" if blocks else "embed"])


Operation = Callable[[Place], np.ndarray]
Merged = Inexact[np.ndarray, "... {at.config.heads}*{at.config.dim_head}"]


def embed(at: Place) -> Inexact[np.ndarray, "... {at.config.dim}"]:
    """The rows of the embedding, (..., n, d)."""
    return at.weight("embedding")[at.tokens]


def norm(at: Place) -> Inexact[np.ndarray, "... {at.config.dim}"]:
    """The one norm of a block, for both branches, or the norm after the last block."""
    return functions.normalise(at.residual, at.weight("norm"), at.config)


def project(at: Place, kind: str) -> Inexact[np.ndarray, "... {at.config.dim_head}"]:
    """The "query" (..., h, n, e), "key" or "value" (..., n, e) before rotary, but after its own norm."""
    shared = at.config.share_kv and kind != "query"
    x = at.tap("norm") @ at.weight(f"attention.{'key_value' if shared else kind}")
    x = functions.split_heads(x, at.config) if kind == "query" else x
    normed = at.config.qk_norm and kind != "value"
    return functions.unit(x, at.weight(f"attention.{kind}_norm")) if normed else x


def q(at: Place) -> Merged:
    """The h query heads, rotated with rotary, merged."""
    return functions.merge_heads(functions.position_step(project(at, "query"), at.config, keys=False))


def k(at: Place) -> Inexact[np.ndarray, "... {at.config.dim_head}"]:
    """The one key head, rotated with rotary."""
    return functions.position_step(project(at, "key"), at.config, keys=True)


def v(at: Place) -> Inexact[np.ndarray, "... {at.config.dim_head}"]:
    """The one value head: never rotated, even if keys and values are one tensor."""
    return project(at, "value")


def attention(at: Place) -> Merged:
    """Causal multi-query attention, heads merged, (..., n, h·e)."""
    return attend(at, functions.position_bias(at.tokens.shape[-1], at.config, at.segments))


def attend(at: Place, bias: Inexact[np.ndarray, "... n n"], scale: float | None = None) -> Merged:
    """softmax(scale·q kᵀ + bias) v with a bias (h, n, n); the scale is e^-1/2 if none is given."""
    heads, key, value = functions.split_heads(at.tap("q"), at.config), at.tap("k"), at.tap("v")
    scaled = heads * (at.config.dim_head**-0.5 if scale is None else scale)
    scores = scaled @ key[..., None, :, :].swapaxes(-1, -2) + bias
    return functions.merge_heads(functions.softmax(scores) @ value[..., None, :, :])


def attention_out(at: Place) -> Inexact[np.ndarray, "... {at.config.dim}"]:
    """The output matrix of attention, (..., n, d)."""
    return at.tap("attention") @ at.weight("attention.out")


def feedforward(at: Place) -> Inexact[np.ndarray, "... {at.config.ff_dim}"]:
    """SwiGLU: swish(y W_gate) · (y W_up), (..., n, f)."""
    gate, up = (at.tap("norm") @ at.weight(f"feedforward.{name}") for name in ("gate", "up"))
    return functions.gated(gate, up)


def feedforward_out(at: Place) -> Inexact[np.ndarray, "... {at.config.dim}"]:
    """The output matrix of the feed-forward, (..., n, d)."""
    return at.tap("feedforward") @ at.weight("feedforward.down")


def out(at: Place) -> Inexact[np.ndarray, "... {at.config.dim}"]:
    """The parallel block: x + attention(norm(x)) + feedforward(norm(x)); one norm for both branches."""
    return at.residual + at.tap("attention_out") + at.tap("feedforward_out")


def logits(at: Place) -> Inexact[np.ndarray, "... {at.config.num_tokens}"]:
    """The output layer, (..., n, v)."""
    return at.tap("norm") @ upcast(functions.output_matrix(at.config, at.weights)) * at.config.logit_scale


_OPERATIONS = (embed, norm, q, k, v, attention, attention_out, feedforward, feedforward_out, out, logits)
REFEREE: Mapping[str, Operation] = {operation.__name__: operation for operation in _OPERATIONS}


def place(
    name: str, config: PaLMConfig, weights: Named, taps: Named, tokens: np.ndarray, segments: Segments = None
) -> Place:
    """Where the operation that computes a tap stands."""
    return Place(config, weights, taps, tokens, name.removesuffix(kind_of(name)), segments)


def run(
    config: PaLMConfig,
    weights: Named,
    tokens: np.ndarray,
    operations: Mapping[str, Operation] = REFEREE,
    segments: Segments = None,
) -> dict[str, np.ndarray]:
    """Every tap in dataflow order, from checked tokens and float64 weights."""
    taps: dict[str, np.ndarray] = {}
    for name in tap_names(config.depth):
        taps[name] = operations[kind_of(name)](place(name, config, weights, taps, tokens, segments))
    return taps


def activations(
    config: PaLMConfig, weights: Named, tokens: np.ndarray, segments: Segments = None
) -> dict[str, np.ndarray]:
    """Every tap of the referee's forward pass, in dataflow order; the last is `logits` (..., n, v).

    With segments (..., n), a position sees only those earlier ones that have its own.
    Raises `ConfigError`, `WeightsError` or `TokenError` for what does not fit together.
    """
    tokens = check_tokens(tokens, config)
    return run(
        config, checked_weights(config, weights), tokens, segments=checked_beside(segments, tokens.shape)
    )
