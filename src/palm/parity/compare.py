"""Two sides of any kind: where they differ, and how much more than rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np

from palm.backends import backend_of, config_of, dtype_of, is_model, model_of
from palm.checkpoint.checkpoint import load_arrays
from palm.errors import ConfigError, ProbeError, TokenError
from palm.parity.blackbox.compare import compare_foreign
from palm.parity.blackbox.result import ForeignComparison
from palm.parity.explain.explain import explained
from palm.parity.judge.conditioning import Conditioning
from palm.parity.judge.findings import excerpt_findings, recording_findings
from palm.parity.judge.need import holds
from palm.parity.judge.predictions import predictions, side_by_side
from palm.parity.programs.compare import compare_programs
from palm.parity.programs.kinds import Framework, check_frameworks, traced_program
from palm.parity.programs.parts import sees_inputs
from palm.parity.programs.result import ProgramComparison
from palm.parity.programs.sides import programs
from palm.parity.programs.trace import Trace, is_trace, read_trace
from palm.parity.progress import progress
from palm.parity.recording.bundle import read_bundle
from palm.parity.recording.excerpt import Excerpt, excerpt_of, first_row
from palm.parity.recording.recording import STEPS, OnStep, Recording, quietly, record
from palm.parity.result import Comparison
from palm.spec import backward, forward
from palm.spec.parameters import numpy_dtype
from palm.spec.rounding import coarsest
from palm.spec.tokens import check_tokens

if TYPE_CHECKING:
    from palm.backends import Model

Recorded = Recording | Excerpt
# A side that is palm's: a live model, a recording, or the path of a bundle.
Side: TypeAlias = "Model | Recorded | str | PathLike[str]"
# A side that is not: anyone's program.
Foreign: TypeAlias = Callable[..., Any]
# What each side is written for; None where that is plain to see.
Frameworks: TypeAlias = "tuple[Framework | None, Framework | None]"
_ROUNDED = (
    "the weights differ as if one side had the other's weights rounded to {0}; give both sides the weights "
    "rounded to {0}, as palm compare does for two live sides"
)
# A NumPy port of more operations loops over elements; to trace it would take minutes.
_MOST_OPERATIONS = 4_000
_SAME_SHAPE = ("num_tokens", "dim", "depth", "heads", "dim_head", "ff_mult")


@overload
def compare(
    a: Side,
    b: Side,
    tokens: Any = ...,
    /,
    *,
    checkpoint: str | PathLike[str] | None = ...,
    on_step: OnStep = ...,
) -> Comparison: ...


@overload
def compare(a: Foreign, b: Model, tokens: Any, /) -> ForeignComparison: ...


@overload
def compare(a: Model, b: Foreign, tokens: Any, /) -> ForeignComparison: ...


@overload
def compare(a: Foreign, b: Foreign, /, *inputs: Any, frameworks: Frameworks = ...) -> ProgramComparison: ...


def compare(
    a: Any,
    b: Any,
    /,
    *inputs: Any,
    frameworks: Frameworks = (None, None),
    checkpoint: str | PathLike[str] | None = None,
    on_step: OnStep = quietly,
) -> Comparison | ForeignComparison | ProgramComparison:
    """Compare two sides on the same inputs.

    **Two programs of anyone's**: a PyTorch module, a function of tensors or of JAX or NumPy arrays, an
    Equinox module, a Flax module with its state. `inputs` are what both are called with: nested containers of
    arrays of any framework; each side gets them as arrays of its own. Both run in float64, every operation is
    recorded, and the two are aligned by the values they compute: a `ProgramComparison` says where they part,
    on which lines, and why. Neither program nor input is changed. `frameworks` says, for each side, "torch",
    "jax" or "numpy" where that is not plain to see. A step of a training is a program, too.

    **Two sides of palm's** on tokens (..., n), n ≥ 2: live models, recordings, or bundles, given by their
    path; recordings bring their own tokens. Both are held against the float64 NumPy referee on a's config and
    weights; of excerpts, each against its own program in float64: a `Comparison`. See `palm.spec.rounding`
    for the two tests. Live models run in this process; `palm compare` on the command line gives each its own.
    `checkpoint` has the weights of excerpts that were not drawn from a seed, which it takes to say why.

    **A model of palm's and a function** from ids to logits that has its weights: a `ForeignComparison`. What
    is wrong in the function is named in palm's terms from its logits alone (see
    `palm.parity.blackbox.compare.compare_foreign`), and on which line, if it can be traced.

    Raises `ProbeError` if a program fails, `TokenError`, `WeightsError` if a weight is not finite,
    `BackendError` for models that are not palm's, `BundleError` for a damaged bundle, `ConfigError` if the
    shapes or the tokens of two sides of palm's differ.

    `on_step` is called with the name of each finished step. Without it, a line on standard error shows how
    far the comparison is, if that is a terminal or a notebook and it takes longer than two seconds.
    """
    check_frameworks(frameworks)
    a, b = (read_trace(side) if is_trace(side) else side for side in (a, b))
    foreign = [(callable(side) and not is_model(side)) or isinstance(side, Trace) for side in (a, b)]
    if all(foreign) or any(isinstance(side, Trace) for side in (a, b)):
        with progress(0) as finished:
            return compare_programs(*programs((a, b), inputs, frameworks, finished), on_step=finished)
    tokens = _only(inputs)
    for is_foreign, side, ours in zip(foreign, (a, b), (b, a), strict=True):
        if is_foreign:
            with progress(0):
                return _with_lines(compare_foreign(side, ours, tokens), side, ours, tokens)
    if on_step is not quietly:
        return explained(judged(a, b, tokens, checkpoint=checkpoint, on_step=on_step))
    live = sum(is_model(side) for side in (a, b))
    with progress(live * (len(STEPS) - 1) + 2) as finished:  # the models are built; referee and explanation
        return explained(judged(a, b, tokens, checkpoint=checkpoint, on_step=finished))


def _only(inputs: tuple[Any, ...]) -> Any:
    """The one input of a model of palm's: its tokens."""
    if len(inputs) > 1:
        raise TokenError(
            f"tokens must be the only input where a side is palm's; got {len(inputs)} inputs. Pass ids."
        )
    return next(iter(inputs), None)


def _with_lines(found: ForeignComparison, function: Any, model: Any, tokens: Any) -> ForeignComparison:
    """What was found from the logits, and where the two part if the function can be traced."""
    # A port in a dtype that cannot hold the model's weights holds rounded ones. In float64 it is therefore
    # another function, right or wrong.
    if found.not_finite or not holds(found.dtype, dtype_of(model)):
        return found
    config = config_of(model)
    ids = check_tokens(tokens, config, at_least=2)
    try:
        a = traced_program(function, (ids,), label=found.label, most=_MOST_OPERATIONS)
        if not sees_inputs(a):
            return found
        b = traced_program(model_of(model), (ids,), label="palm", framework=backend_of(model))
        lines = compare_programs(a, b, precision=False)
    except ProbeError:  # it is remote, say, or compiled: its logits are all there is
        return found
    return replace(found, traced=not lines.doubts, divergences=lines.divergences)


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
