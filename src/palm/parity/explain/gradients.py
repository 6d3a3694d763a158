"""Where and why gradients depart though the forward pass is right: from the loss back, the first that do.

A fault of the backward pass is passed on to everything before it, so that of all gradients the ones nearest
to the loss say where. A gradient that is a known function of the right one says why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from palm.parity.diagnosis import SHARE, UNKNOWN, Diagnosis
from palm.parity.explain.replay import distance
from palm.parity.explain.shards import of_processes
from palm.parity.recording.recording import Recording
from palm.spec import backward
from palm.spec.arrays import Named

_SCALE = "Divide the loss by the number of predicted tokens, once, and let no factor into the backward pass."
_MISSING = "Look for a detach, a stop_gradient, or a parameter that is used only through a copy."
_TRANSPOSED = "Transpose the gradient, or the matrix it belongs to."
_ONE_USE = "Use one tensor for both ends, so that its two gradients add up."


def diagnose_backward(side: Recording, off: Mapping[str, float]) -> Iterator[Diagnosis]:
    """Faults of the backward pass of a side whose forward pass is right.

    `off`: the gradients that are further from the referee's than rounding explains, and what it explains,
    relative to the gradient's rms.
    """
    _, exact = backward.value_and_grad(side.config, side.weights, side.tokens)

    def told(names: Sequence[str], cause: str, detail: str, after: float, fix: str) -> Diagnosis:
        return Diagnosis(
            side=side.label,
            taps=tuple(f"grad:{name}" for name in names),
            cause=cause,
            detail=detail,
            before=max(distance(side.grads[name], exact[name]) for name in names),
            after=after,
            bound=max(off[name] for name in names),
            confined="",
            fix=fix,
        )

    factor = _common_factor(side.grads, exact)
    if factor is not None and off.keys() == exact.keys():
        after = max(distance(side.grads[name], factor * exact[name]) for name in exact)
        yield told(
            list(off), "gradient scale", f"all gradients are {factor:.4g}× their correct value", after, _SCALE
        )
        return
    nearest = _nearest(off)
    named = []
    for name in nearest:
        for cause, detail, wrong, fix in _known(side, name, exact):
            after = distance(side.grads[name], wrong) if wrong.any() else float(side.grads[name].any())
            if after <= min(off[name], SHARE * distance(side.grads[name], exact[name])):
                named.append(told([name], cause, detail, after, fix))
                break
    # What is not named in the same block may be the echo of what is.
    yield from named or [told(nearest, UNKNOWN, "the forward pass is correct", np.nan, "")]


def _nearest(off: Mapping[str, float]) -> list[str]:
    """Of the gradients that are off, those of the place nearest to the loss, in order."""
    places = [name.split(".")[:2] if name.startswith("blocks.") else [name] for name in reversed(list(off))]
    return [name for name, place in zip(reversed(list(off)), places, strict=True) if place == places[0]]


def _common_factor(grads: Named, exact: Named) -> float | None:
    """By which one number all gradients are what they should be times; None if there is none but 1."""
    products = sum(float((np.asarray(grads[name], np.float64) * exact[name]).sum()) for name in exact)
    factor = products / sum(float(np.square(exact[name]).sum()) for name in exact)
    alike = all(distance(grads[name], factor * exact[name]) < 0.1 * abs(factor - 1) for name in exact)
    return factor if alike else None


def _known(side: Recording, name: str, exact: Named) -> Iterator[tuple[str, str, np.ndarray, str]]:
    """What a gradient may be instead of itself: cause, detail, value, fix."""
    right = exact[name]
    yield "gradient missing", "the gradient is 0", np.zeros_like(right), _MISSING
    yield from of_processes(side, name, right)
    value = np.asarray(side.grads[name], np.float64)
    factor = float((value * right).sum() / np.square(right).sum())
    yield "gradient scale", f"the gradient is {factor:.4g}× its correct value", factor * right, _SCALE
    if right.ndim == 2 and right.shape[0] == right.shape[1]:
        yield "gradient transposed", "the gradient is transposed", right.T, _TRANSPOSED
    if name == "embedding" and side.config.tie_embeddings:
        untied = dataclasses.replace(side.config, tie_embeddings=False)
        weights = {**side.weights, "unembedding": np.ascontiguousarray(side.weights[name].T)}
        _, apart = backward.value_and_grad(untied, weights, side.tokens)
        yield (
            "gradient of one use",
            "the gradient is only that of the token lookup",
            apart["embedding"],
            _ONE_USE,
        )
        yield (
            "gradient of one use",
            "the gradient is only that of the output layer",
            apart["unembedding"].T,
            _ONE_USE,
        )
