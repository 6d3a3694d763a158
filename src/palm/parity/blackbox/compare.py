"""A model that is not ours: only its logits are seen, so the known causes are applied to our side until it
behaves like that: "your port is this model with half-split rotary"."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np

from palm.backends import backend_of, config_of, dtype_of, is_model, model_of
from palm.errors import BackendError, ProbeError
from palm.models import activations, to_numpy
from palm.parity.blackbox.examine import Examined, examine, lone_position, own_errors, rounding_of
from palm.parity.blackbox.guess import Search
from palm.parity.blackbox.logits import Logits, logits_of
from palm.parity.blackbox.result import ForeignComparison, Likeness
from palm.parity.blackbox.search import Outcome
from palm.parity.explain.replay import distance
from palm.parity.judge.need import LOW
from palm.parity.judge.predictions import predictions
from palm.parity.label import label_of
from palm.parity.recording.recording import Recording
from palm.spec.tokens import check_tokens


def compare_foreign(function: Callable[[np.ndarray], Any], model: Any, tokens: Any) -> ForeignComparison:
    """Compare a callable, ids (..., n) to logits (..., n, v), with a model of palm's that has its weights.

    The callable is given an int64 array (a torch module a tensor) and may return an array of any framework,
    also with a batch axis of one in front, of float64, float32, float16 or bfloat16: the type it computes in,
    whose rounding it is held to. Logits in a wider type that are all rounded to a lower one, as
    `logits.float()` of a bfloat16 model, are held to that. Raises `TokenError`, `BackendError` if `model` is
    not palm's, and `ProbeError` for logits of another shape or type, or if the callable fails.
    """
    label = label_of(function, "palm")
    if not is_model(model) and not isinstance(model, (str, PathLike)):
        other = label_of(model, label) if callable(model) else type(model).__name__
        raise BackendError(
            "one of the two sides must be a palm model, to hold the other one against; got "
            f"{label} and {other}. Put your weights into one: palm.from_numpy(config, weights, backend=…)."
        )
    config = config_of(model)
    weights = {name: np.asarray(array, np.float64) for name, array in to_numpy(model).items()}
    ids = check_tokens(tokens, config, at_least=2)

    def call(ids: np.ndarray) -> Logits:
        return logits_of(function, ids, config, label, dtype_of(model))

    own = model_of(model)
    return _answer(label, "palm", examine(call, config, weights, ids, lambda whole: own_errors(own, whole)))


def compare_logits(label: str, logits: Logits, recording: Recording) -> ForeignComparison:
    """Compare the logits of a palm model that were computed in another way with what a model recorded.

    As `compare_foreign`: they have the recording's weights, and are of its tokens. What the recording is off
    by is a right program's rounding, if it was made in the same type. Where the recording alone is not within
    rounding of the referee, the answer is about it. Where all logits together are, single positions are held
    to what right programs are off by there. Raises `ProbeError` where neither side is near the referee.
    """
    weights = {name: np.asarray(array, np.float64) for name, array in recording.weights.items()}
    config, ids = recording.config, recording.tokens
    recorded = Logits(recording.taps["logits"].astype(np.float64), recording.dtype)
    plain = Search(config, weights, ids, *recorded)
    names = label, recording.label
    if not _is_near(plain):
        if not _is_near(Search(config, weights, ids, *logits)):
            _check_plain(recording.label, plain)
        logits, recorded, names = recorded, logits, names[::-1]
    same = logits.dtype == recorded.dtype

    def own(whole: Search) -> Iterator[float]:
        if same:
            yield distance(recorded.values, whole.exact)

    def beginning(ids: np.ndarray) -> Logits:
        return logits._replace(values=logits.values[tuple(map(slice, ids.shape))])

    found = examine(beginning, config, weights, ids, own)
    if found.first is None:
        found = replace(found, first=lone_position(found.whole, [recorded.values] if same else []))
    if found.first is None and not found.met:
        first = lone_position(plain, [logits.values] if same else [])
        if first is not None:
            found, names = Examined(plain, Outcome((), 0, 0), (), first), names[::-1]
    return _answer(*names, found, one_model=True)


def _answer(label: str, other: str, found: Examined, *, one_model: bool = False) -> ForeignComparison:
    whole = found.whole
    top1, kl = predictions(whole.logits, whole.exact)
    asks = whole.dtype in LOW or whole.before > whole.bound
    return ForeignComparison(
        label=label,
        other=other,
        one_model=one_model,
        config=whole.config,
        dtype=whole.dtype,
        before=whole.before,
        bound=whole.bound,
        need=whole.need if asks and math.isfinite(whole.before) else math.nan,
        certain=whole.certain if asks and math.isfinite(whole.before) else math.nan,
        not_finite=int((~np.isfinite(whole.logits)).sum()),
        rounding_of=rounding_of(whole) if math.isfinite(whole.before) else None,
        likenesses=tuple(
            Likeness(" and ".join(one.names), "; ".join(one.details), one.after, " ".join(one.fixes))
            for one in found.met
        ),
        top1_agreement=top1,
        kl_divergence=kl,
        tried=found.outcome.tried,
        left_out=found.outcome.left_out,
        one_id=bool((whole.ids == whole.ids[..., :1]).all()),
        first_position=found.first,
        hints=tuple(_hints(found, is_place_told=one_model)),
    )


def _hints(found: Examined, *, is_place_told: bool) -> Iterator[str]:
    """What is known of a difference that nothing explains."""
    whole, nearest = found.whole, found.outcome.nearest
    if found.met or found.first is None:
        return
    position = found.first[-1]
    if position and not is_place_told:
        sequence = f" of sequence {found.first[0]}" if len(found.first) > 1 else ""
        yield f"The first position that differs is {position}{sequence}, of id {whole.ids[found.first]}."
    refuted = next(iter(found.outcome.met), None)
    if refuted is not None:
        yield f"In the beginning it is as if {'; '.join(refuted.details)}, but not further on."
    if nearest is not None and nearest.after < whole.before:
        share = 1 - nearest.after / whole.before
        yield f"Nearest is that {nearest.details[0]}, which takes {share:.0%} off the distance."


def check_own(model: Any, tokens: Any) -> None:
    """Raise `ProbeError` unless the model's own logits are the referee's, in whose place it judges."""
    config, weights = config_of(model), to_numpy(model)
    ids = check_tokens(tokens, config, at_least=2)
    logits = activations(model, ids)["logits"].astype(np.float64)
    own = Search(config, {n: w.astype(np.float64) for n, w in weights.items()}, ids, logits, dtype_of(model))
    _check_plain(f"palm's {backend_of(model)} side", own)


def _check_plain(label: str, own: Search) -> None:
    if not _is_near(own):
        raise ProbeError(
            f"{label} must be within rounding of the referee, {own.bound:.1e}; got {own.before:.1e}. "
            "Find out why: palm compare torch jax."
        )


def _is_near(own: Search) -> bool:
    """Whether rounding explains all of it; NaN is not near."""
    return own.before <= own.bound
