"""From two recordings to findings: where two sides differ, and how much more than rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np

from palm.backends import is_model
from palm.checkpoint.checkpoint import load_arrays
from palm.errors import ConfigError, TokenError
from palm.parity.blackbox.compare import ForeignComparison, compare_foreign
from palm.parity.explain.explain import explained
from palm.parity.judge.conditioning import Conditioning
from palm.parity.judge.findings import excerpt_findings, recording_findings
from palm.parity.judge.predictions import predictions, side_by_side
from palm.parity.progress import progress
from palm.parity.recording.bundle import read_bundle
from palm.parity.recording.excerpt import Excerpt, excerpt_of, first_row
from palm.parity.recording.recording import STEPS, OnStep, Recording, quietly, record
from palm.parity.result import Comparison
from palm.spec import backward, forward
from palm.spec.arrays import Ids
from palm.spec.parameters import numpy_dtype
from palm.spec.rounding import coarsest

if TYPE_CHECKING:
    from palm.backends import Model

Recorded = Recording | Excerpt
# A side that is palm's: a live model, a recording, or the path of a bundle.
Side: TypeAlias = "Model | Recorded | str | PathLike[str]"
# A side that is not: a function from ids to logits.
Foreign: TypeAlias = Callable[[Ids], Any]
_ROUNDED = (
    "the weights differ as if one side had the other's weights rounded to {0}; give both sides the weights "
    "rounded to {0}, as palm compare does for two live sides"
)
_SAME_SHAPE = ("num_tokens", "dim", "depth", "heads", "dim_head", "ff_mult")


@overload
def compare(
    a: Side,
    b: Side,
    tokens: Any = ...,
    *,
    checkpoint: str | PathLike[str] | None = ...,
    on_step: OnStep = ...,
) -> Comparison: ...


@overload
def compare(a: Foreign, b: Model, tokens: Any) -> ForeignComparison: ...


@overload
def compare(a: Model, b: Foreign, tokens: Any) -> ForeignComparison: ...


def compare(
    a: Any,
    b: Any,
    tokens: Any = None,
    *,
    checkpoint: str | PathLike[str] | None = None,
    on_step: OnStep = quietly,
) -> Comparison | ForeignComparison:
    """Compare two sides on `tokens`: live models of palm's, recordings, or bundles, and get a `Comparison`.

    If one of them is a callable that is not palm's, from ids to logits, it is held against the other one, a
    model that has its weights, and what is wrong in it is named: a `ForeignComparison` (see
    `palm.parity.blackbox.compare.compare_foreign`).

    Both are held against the float64 NumPy referee on a's config and weights; of excerpts, each against its
    own program in float64. See `palm.spec.rounding` for the two tests. Live models run in this process;
    `palm compare` on the command line gives each its own. A bundle is given by its path;
    `checkpoint` has the weights of excerpts that were not drawn from a seed, which it takes to say why.
    Tokens (..., n), n ≥ 2; recordings bring their own. Raises `TokenError`, `WeightsError` if a weight is not
    finite, `BackendError` for models that are not palm's, `BundleError` for a damaged bundle,
    `ConfigError` if the shapes or the tokens of the two differ.

    `on_step` is called with the name of each finished step. Without it, a line on standard error shows how
    far the comparison is, if that is a terminal or a notebook and it takes longer than two seconds.
    """
    for foreign, ours in ((a, b), (b, a)):
        if callable(foreign) and not is_model(foreign):
            with progress(0):
                return compare_foreign(foreign, ours, tokens)
    if on_step is not quietly:
        return explained(judged(a, b, tokens, checkpoint=checkpoint, on_step=on_step))
    live = sum(is_model(side) for side in (a, b))
    with progress(live * (len(STEPS) - 1) + 2) as finished:  # the models are built; referee and explanation
        return explained(judged(a, b, tokens, checkpoint=checkpoint, on_step=finished))


def judged(
    a: Any,
    b: Any,
    tokens: Any = None,
    *,
    checkpoint: str | PathLike[str] | None = None,
    on_step: OnStep = quietly,
) -> Comparison:
    """`compare` of two sides that are palm's, without the explanation, which takes longest."""
    recorded = [_recorded(side, checkpoint) for side in (a, b)]
    if tokens is None:  # a recording brings its own
        tokens = next((side.tokens for side in recorded if side is not None), None)
    if tokens is None:
        raise TokenError("tokens must be given to compare live models; got none. Pass ids (..., n).")
    side_a, side_b = (
        record(live, tokens, on_step=on_step) if side is None else side
        for live, side in zip((a, b), recorded, strict=True)
    )
    if side_a.label == side_b.label:
        side_a, side_b = (replace(x, label=f"{x.label} {s}") for x, s in ((side_a, "a"), (side_b, "b")))
    _check_comparable(side_a, side_b)
    with np.errstate(over="ignore", invalid="ignore"):  # what was recorded may be anything
        if isinstance(side_a, Recording) and isinstance(side_b, Recording):
            return _compare_recordings(side_a, side_b, on_step)
        return _compare_excerpts(*(x if isinstance(x, Excerpt) else excerpt_of(x) for x in (side_a, side_b)))


def _recorded(side: Any, checkpoint: str | PathLike[str] | None) -> Recorded | None:
    """A side's recording, if it is one or the path of one; an excerpt with the checkpoint's weights."""
    if isinstance(side, (str, PathLike)):
        side = read_bundle(Path(side))
    if isinstance(side, Excerpt) and side.weights is None and checkpoint is not None:
        return side.with_weights(load_arrays(checkpoint)[1])
    return side if isinstance(side, (Recording, Excerpt)) else None


def _compare_recordings(a: Recording, b: Recording, on_step: OnStep) -> Comparison:
    exact_taps = forward.activations(a.config, a.weights, a.tokens)
    exact_loss, exact_grads = backward.value_and_grad(a.config, a.weights, a.tokens)
    on_step("referee")
    top1, kl = predictions(a.taps["logits"], b.taps["logits"])
    other = _other_weights(a.weights, b.weights)
    rounded = bool(other) and a.dtype != b.dtype and _same_when_rounded(a, b)
    return Comparison(
        label_a=a.label,
        label_b=b.label,
        findings=tuple(
            recording_findings(
                a,
                b,
                exact_taps,
                exact_loss,
                exact_grads,
                Conditioning(a.config, a.weights, a.tokens),
                same_model=not other and a.config == b.config,
            )
        ),
        **_what_differs(a, b, other, rounded=rounded),
        top1_agreement=top1,
        kl_divergence=kl,
        predictions=side_by_side(a.config, a.tokens, a.taps["logits"], b.taps["logits"]),
        losses=(a.loss, b.loss, exact_loss),
        referee=True,
        recordings=(a, b),
    )


def _compare_excerpts(a: Excerpt, b: Excerpt) -> Comparison:
    known = bool(a.taps and b.taps)
    length = min(len(side.taps["embed"]) for side in (a, b)) if known else 0
    logits = [side.taps["logits"][:length] for side in (a, b) if known]
    other = [name for name in {**a.digests, **b.digests} if a.digests.get(name) != b.digests.get(name)]
    rounded = bool(other) and a.dtype != b.dtype
    top1, kl = predictions(*logits) if known else (math.nan, math.nan)
    return Comparison(
        label_a=a.label,
        label_b=b.label,
        findings=tuple(excerpt_findings(a, b, same_model=not other and a.config == b.config)),
        **_what_differs(a, b, other, rounded=rounded),
        top1_agreement=top1,
        kl_divergence=kl,
        predictions=side_by_side(a.config, first_row(a.tokens)[:length], *logits) if known else (),
        losses=(a.loss, b.loss, math.nan),
        referee=False,
        recordings=(a, b),
    )


def _what_differs(a: Recorded, b: Recorded, other_weights: Sequence[str], *, rounded: bool) -> dict[str, Any]:
    """Fields of a `Comparison`. `rounded`: the other weights are, for all that is known, rounded ones."""
    return {
        "differences": tuple(_differences(a, b, () if rounded else other_weights)),
        "doubts": (_ROUNDED.format(coarsest((a.dtype, b.dtype))),) if rounded else (),
        "weights_identical": not other_weights,
    }


def _differences(a: Recorded, b: Recorded, other_weights: Sequence[str]) -> Iterable[str]:
    for name, value in a.config.to_dict().items():
        if getattr(b.config, name) != value:
            yield f"{name} is {value!r} in {a.label} and {getattr(b.config, name)!r} in {b.label}"
    if other_weights:
        more = f" and {len(other_weights) - 1} more tensors" if len(other_weights) > 1 else ""
        yield f"the weights differ in {other_weights[0]}{more}"


def _other_weights(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> list[str]:
    """Names of weights that are not equal as numbers: sides of different dtype may hold the same ones."""

    def same(name: str) -> bool:
        wide = np.float64
        return name in a and name in b and np.array_equal(a[name].astype(wide), b[name].astype(wide))

    return [name for name in {**a, **b} if not same(name)]


def _same_when_rounded(a: Recording, b: Recording) -> bool:
    narrow = numpy_dtype(coarsest((a.dtype, b.dtype)))
    return not _other_weights(*({n: x.astype(narrow) for n, x in side.weights.items()} for side in (a, b)))


def _check_comparable(a: Recorded, b: Recorded) -> None:
    for name in _SAME_SHAPE:
        if getattr(a.config, name) != getattr(b.config, name):
            raise ConfigError(
                f"{name} must be the same on both sides because their taps are compared; got "
                f"{name}={getattr(a.config, name)} and {getattr(b.config, name)}. Compare equal shapes."
            )
    if not np.array_equal(a.tokens, b.tokens):
        raise ConfigError("tokens must be the same on both sides; got two arrays that differ. Record again.")
