"""What ports get wrong at the ends: tokens, embedding, residual stream, logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from palm.config import PaLMConfig
from palm.parity.explain.causes import solvers
from palm.parity.explain.causes.building_blocks import Variant, times, with_config
from palm.spec import forward, functions
from palm.spec.forward import Operation, Place


def tokens(config: PaLMConfig) -> Iterator[Variant]:
    """Other ids than those given."""

    def moved(by: int) -> Operation:
        return lambda at: forward.embed(dataclasses.replace(at, tokens=np.roll(at.tokens, by, -1)))

    def other(by: int) -> Operation:
        def operation(at: Place) -> np.ndarray:
            return forward.embed(dataclasses.replace(at, tokens=(at.tokens + by) % at.config.num_tokens))

        return operation

    yield "the ids looked up are those given + 1", {"embed": other(1)}
    yield "the ids looked up are those given − 1", {"embed": other(-1)}
    yield "the tokens are shifted by one to the right", {"embed": moved(1)}
    yield "the tokens are shifted by one to the left", {"embed": moved(-1)}
    yield (
        "the tokens are in reverse order",
        {"embed": lambda at: forward.embed(dataclasses.replace(at, tokens=at.tokens[..., ::-1]))},
    )


def embedding_scale(config: PaLMConfig) -> Iterator[Variant]:
    """A factor on the embedding."""
    for told, scale in (("√dim", config.dim**0.5), ("dim^-1/2", config.dim**-0.5)):
        yield f"the embedding is multiplied by {told}", {"embed": times(scale, forward.embed)}


def logit_scale(config: PaLMConfig) -> Iterator[Variant]:
    """Another factor on the logits."""
    root = config.dim**-0.5
    for told, scale in (("1 (no factor)", 1.0), ("dim^-1/2", root), ("1 / dim", root**2)):
        if scale != config.logit_scale:
            factor = scale / config.logit_scale
            yield (
                f"the logits are multiplied by {told} instead of {config.logit_scale:.3g}",
                {"logits": times(factor, forward.logits)},
            )


def output_matrix(config: PaLMConfig) -> Iterator[Variant]:
    """The wrong matrix, or its transpose."""

    def reshaped(at: Place) -> np.ndarray:
        matrix = functions.output_matrix(at.config, at.weights)
        return at.tap("norm") @ np.ascontiguousarray(matrix.T).reshape(matrix.shape) * at.config.logit_scale

    yield "the output matrix is transposed", {"logits": reshaped}
    if not config.tie_embeddings:
        yield "the output matrix is tied to the embedding", with_config(("logits",), tie_embeddings=True)


def residual(config: PaLMConfig) -> Iterator[Variant]:
    """Something is not added."""
    for told, taps in (
        ("the residual stream is not added", ("attention_out", "feedforward_out")),
        ("the attention output is not added", ("residual", "feedforward_out")),
        ("the feed-forward output is not added", ("residual", "attention_out")),
    ):

        def added(at: Place, taps: tuple[str, ...] = taps) -> np.ndarray:
            return sum((at.residual if tap == "residual" else at.tap(tap) for tap in taps), np.zeros(()))

        yield told, {"out": added}


TOKENS = (solvers.ids,)
EMBEDDING_SCALE = (solvers.factor("embed", lambda at, scale: f"the embedding is multiplied by {scale:.10g}"),)
LOGIT_SCALE = (
    solvers.factor(
        "logits",
        lambda at, scale: (
            f"the logits are multiplied by {scale * at.config.logit_scale:.10g} instead of "
            f"{at.config.logit_scale:.10g}"
        ),
    ),
)
MATRIX = (solvers.matrix,)
