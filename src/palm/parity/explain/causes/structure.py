"""What ports get wrong in how a block, and a model, is put together: activation, order, norms, outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

import ml_dtypes
import numpy as np

from palm.config import PaLMConfig
from palm.parity.explain.causes.building_blocks import Variant
from palm.spec import forward, functions
from palm.spec.forward import REFEREE, Operation, Place

_erf = np.vectorize(math.erf, otypes=[np.float64])
# The activation of the gate, by its name.
ACTIVATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "GELU": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "GELU in its tanh form": lambda x: (
        0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "ReLU": lambda x: np.maximum(x, 0),
    "squared ReLU": lambda x: np.maximum(x, 0) ** 2,
    "x·sigmoid(1.702·x)": lambda x: x / (1 + np.exp(-1.702 * x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "the identity": lambda x: x,
}


def activation(config: PaLMConfig) -> Iterator[Variant]:
    """Another one on the gate, or no second factor."""

    def gate_and_up(at: Place) -> tuple[np.ndarray, np.ndarray]:
        y = at.tap("norm")
        return y @ at.weight("feedforward.gate"), y @ at.weight("feedforward.up")

    def with_(function: Callable[[np.ndarray], np.ndarray]) -> Operation:
        def operation(at: Place) -> np.ndarray:
            gate, up = gate_and_up(at)
            return function(gate) * up

        return operation

    for name, function in ACTIVATIONS.items():
        yield f"the activation of the gate is {name} instead of swish", {"feedforward": with_(function)}

    def ungated(at: Place) -> np.ndarray:
        gate, up = gate_and_up(at)
        return functions.gated(gate, np.ones_like(up))

    yield "the swish of the gate is not multiplied by the up projection", {"feedforward": ungated}


def _with_norm(kind: str, make: Callable[[Place], np.ndarray]) -> Operation:
    """The operation from another norm than the block's."""

    def operation(at: Place) -> np.ndarray:
        taps = {**at.taps, f"{at.prefix}norm": make(at)}
        return REFEREE[kind](dataclasses.replace(at, taps=taps))

    return operation


def order(config: PaLMConfig) -> Iterator[Variant]:
    """One branch after the other, or the norm elsewhere."""

    def normed(at: Place, x: np.ndarray) -> np.ndarray:
        return functions.normalise(x, at.weight("norm"), at.config)

    def after_attention(at: Place) -> np.ndarray:
        return normed(at, at.residual + at.tap("attention_out"))

    def after_feedforward(at: Place) -> np.ndarray:
        taps = {**at.taps, f"{at.prefix}feedforward": forward.feedforward(at)}
        return normed(at, at.residual + forward.feedforward_out(dataclasses.replace(at, taps=taps)))

    yield (
        "the feed-forward comes after attention instead of beside it",
        {"feedforward": _with_norm("feedforward", after_attention)},
    )
    yield (
        "attention comes after the feed-forward instead of beside it",
        {kind: _with_norm(kind, after_feedforward) for kind in ("q", "k", "v")},
    )

    def unnormed(at: Place) -> np.ndarray:
        return at.residual if at.prefix else forward.norm(at)

    yield (
        "a block norms its sum instead of its input",
        {"norm": unnormed, "out": lambda at: normed(at, forward.out(at))},
    )


def final_norm(config: PaLMConfig) -> Iterator[Variant]:
    """Left out."""
    yield (
        "the norm before the logits is missing",
        {"norm": lambda at: forward.norm(at) if at.prefix else at.residual},
    )


def branches(config: PaLMConfig) -> Iterator[Variant]:
    """What is added to the residual stream, and which blocks do."""
    yield (
        "the output of a block is added to its normed input",
        {"out": lambda at: at.tap("norm") + at.tap("attention_out") + at.tap("feedforward_out")},
    )
    for told, factor in (("1/2", 0.5), ("2", 2.0), ("2^-1/2", 2**-0.5)):
        yield (
            f"the outputs of attention and feed-forward are multiplied by {told}",
            {"out": _branches_times(factor)},
        )
    for dropped in range(config.depth):
        yield f"block {dropped} is left out", {"out": _leaving_out(f"blocks.{dropped}.")}


def _branches_times(factor: float) -> Operation:
    return lambda at: at.residual + factor * (forward.out(at) - at.residual)


def _leaving_out(prefix: str) -> Operation:
    return lambda at: at.residual if at.prefix == prefix else forward.out(at)


def blocks(config: PaLMConfig) -> Iterator[Variant]:
    """Weights of another block."""

    def taken(source: Mapping[int, int]) -> Mapping[str, Operation]:
        def operation(kind: str) -> Operation:
            def run(at: Place) -> np.ndarray:
                i = int(at.prefix.split(".")[1]) if at.prefix else -1
                if source.get(i, i) == i:
                    return REFEREE[kind](at)
                other = f"blocks.{source[i]}."
                moved = {
                    at.prefix + name.removeprefix(other): weight
                    for name, weight in at.weights.items()
                    if name.startswith(other)
                }
                return REFEREE[kind](dataclasses.replace(at, weights={**at.weights, **moved}))

            return run

        kinds = ("norm", "q", "k", "v", "attention_out", "feedforward", "feedforward_out")
        return {kind: operation(kind) for kind in kinds}

    depth = config.depth
    if depth > 1:
        yield "the blocks are in reverse order", taken({i: depth - 1 - i for i in range(depth)})
        yield "all blocks have the weights of block 0", taken(dict.fromkeys(range(depth), 0))
    for i in range(depth - 1):
        if depth > 2:
            yield f"blocks {i} and {i + 1} are exchanged", taken({i: i + 1, i + 1: i})
        yield f"block {i + 1} has the weights of block {i}", taken({i + 1: i})
        yield f"block {i} has the weights of block {i + 1}", taken({i: i + 1})


def outputs(config: PaLMConfig) -> Iterator[Variant]:
    """Something else than logits, or of other places."""

    def log_softmax(at: Place) -> np.ndarray:
        z = forward.logits(at)
        z = z - z.max(-1, keepdims=True)
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    yield "the output is the log-softmax of the logits", {"logits": log_softmax}
    yield "the output is the softmax of the logits", {"logits": lambda at: np.exp(log_softmax(at))}
    for by, told in ((1, "right"), (-1, "left")):
        yield (
            f"the logits are shifted by one position to the {told}",
            {"logits": _rolled(by)},
        )
    for cap in (10.0, 20.0, 30.0, 50.0):
        yield (
            f"the logits are capped: {cap:g}·tanh(x/{cap:g})",
            {"logits": _capped(cap)},
        )


def _rolled(by: int) -> Operation:
    return lambda at: np.roll(forward.logits(at), by, -2)


def _capped(cap: float) -> Operation:
    return lambda at: cap * np.tanh(forward.logits(at) / cap)


def rounded_weights(config: PaLMConfig) -> Iterator[Variant]:
    """Weights kept in fewer bits, products in many."""

    def int8(w: np.ndarray) -> np.ndarray:
        step = np.abs(w).max(0, keepdims=True) / 127
        return np.round(w / np.where(step > 0, step, 1)) * step

    def cast(to: np.typing.DTypeLike) -> Callable[[np.ndarray], np.ndarray]:
        return lambda w: w.astype(to).astype(np.float64)

    def with_(change: Callable[[np.ndarray], np.ndarray], kind: str) -> Operation:
        def operation(at: Place) -> np.ndarray:
            own = {
                name: change(np.asarray(weight, np.float64)) if weight.ndim > 1 else weight
                for name, weight in at.weights.items()
                if name.startswith(at.prefix or ("embedding", "unembedding", "norm"))
            }
            return REFEREE[kind](dataclasses.replace(at, weights=own))

        return operation

    kinds = ("embed", "q", "k", "v", "attention_out", "feedforward", "feedforward_out", "logits")
    for told, change in (
        ("bfloat16", cast(ml_dtypes.bfloat16)),
        ("float16", cast(np.float16)),
        ("int8, a step for each column", int8),
    ):
        yield f"the weights are rounded to {told}", {kind: with_(change, kind) for kind in kinds}
