"""A model that is not ours: only its logits are seen, so the known causes are applied to our side until it
behaves like that: "your port is this model with half-split rotary"."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, Literal

import numpy as np

from palm.backends import backend_of, config_of, dtype_of, is_model
from palm.config import DType, PaLMConfig
from palm.errors import BackendError, ProbeError
from palm.fields import plain
from palm.models import activations, to_numpy
from palm.parity.answer import Answer
from palm.parity.blackbox.label import label_of
from palm.parity.blackbox.search import Outcome, Search, confirmed, explain
from palm.parity.diagnosis import evidence
from palm.parity.explain.replay import distance
from palm.parity.judge.predictions import predictions
from palm.spec import forward
from palm.spec.arrays import as_numpy
from palm.spec.parameters import DTYPES
from palm.spec.rounding import rounding_bound
from palm.spec.tokens import check_tokens

# So many positions show most faults.
_BRIEF = 32
# Equal values have one average, whatever their weights.
_BLIND = (
    "Each sequence repeats one id: mistakes in positions, in attention's scores and in its mask cannot show. "
    "Compare on different ids as well."
)


@dataclass(frozen=True)
class Likeness:
    """What gives the palm model the foreign one's logits: known causes, or "config" for another config."""

    cause: str
    detail: str
    after: float
    fix: str


@dataclass(frozen=True, repr=False)
class ForeignComparison(Answer):
    """What `palm.compare(function, model, tokens)` found. Distances are relative rms of the logits.

    `before`: between the foreign logits and the float64 referee's on our weights; `bound`: what rounding
    explains of it in `dtype`; `rounding_of`: the widest type whose rounding would, if there is one.
    `not_finite`: how many logits are NaN or infinite. `likenesses`: what explains it, empty if nothing known
    does; several are equally like. `tried`: variants that were; `left_out`: those, of several causes at once,
    that were not because this model's runs take too long. `one_id`: each sequence repeats one id.
    """

    label: str
    config: PaLMConfig
    dtype: DType
    before: float
    bound: float
    not_finite: int
    rounding_of: DType | None
    likenesses: tuple[Likeness, ...]
    top1_agreement: float
    kl_divergence: float
    tried: int
    left_out: int
    one_id: bool = False

    @property
    def agree(self) -> bool:
        """Whether the difference is rounding."""
        return self.before <= self.bound

    @property
    def outcome(self) -> Literal["agree", "differ"]:
        """The answer."""
        return "agree" if self.agree else "differ"

    @property
    def first_divergence(self) -> str | None:
        """`logits`, the only tap there is, if they differ."""
        return None if self.agree else "logits"

    @property
    def ratios(self) -> dict[str, float]:
        """The distance in units of what rounding explains."""
        return {"logits": self.before / self.bound}

    @property
    def verdict(self) -> str:
        """The answer in a sentence or two."""
        if self.agree:
            note = f" {_BLIND}" if self.one_id else ""
            return f"{self.label} and palm agree: their logits differ by rounding ({self.before:.1e}).{note}"
        measured = f"distance {self.before:.1e}, rounding explains at most {self.bound:.1e}"
        if self.not_finite:
            return f"{self.label} and palm differ: {self.not_finite:,} of its logits are not finite."
        if not self.likenesses:
            hint = "Compare tap by tap if you can (palm.activations)."
            if self.rounding_of is not None:
                hint = (
                    f"Rounding in {self.rounding_of} would explain it: if your function computes in "
                    f"{self.rounding_of}, return {self.rounding_of} logits."
                )
            if self.left_out:
                hint = (
                    f"palm did not try {self.left_out:,} more variants, to save time. With a smaller model "
                    f"it tries all. {hint}"
                )
            return (
                f"{self.label} and palm differ ({measured}), and none of the {self.tried} variants that palm "
                f"tried explains it. {hint}"
            )
        first = self.likenesses[0]
        others = "; or ".join(one.detail for one in self.likenesses[1:3])
        told = evidence(first.cause, self.before, first.after, self.bound)
        return f"{self.label} behaves like this model, but {first.detail} ({told}). {first.fix}" + (
            f" This explains it equally well: {others}." if others else ""
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; what is not finite is given as text."""
        return {
            "schema": "palm-compare-foreign",
            "version": 1,
            "outcome": self.outcome,
            "agree": self.agree,
            "verdict": self.verdict,
            "first_divergence": self.first_divergence,
            "label": self.label,
            "dtype": self.dtype,
            "config": self.config.to_dict(),
            "before": plain(self.before),
            "bound": self.bound,
            "not_finite": self.not_finite,
            "rounding_of": self.rounding_of,
            "likenesses": [asdict(one) for one in self.likenesses],
            "top1_agreement": plain(self.top1_agreement),
            "kl_divergence_nats": plain(self.kl_divergence),
            "tried": self.tried,
            "left_out": self.left_out,
        }


def compare_foreign(function: Callable[[np.ndarray], Any], model: Any, tokens: Any) -> ForeignComparison:
    """Compare a callable, ids (..., n) to logits (..., n, v), with a model of palm's that has its weights.

    The callable is given an int64 array and may return an array of any framework, of float64, float32 or
    bfloat16: the type it computes in, whose rounding it is held to. Raises `TokenError`, `BackendError` if
    `model` is not palm's, and `ProbeError` for logits of another shape or type, or if the callable fails.
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

    def search(ids: np.ndarray) -> tuple[Search, DType]:
        logits, dtype = _logits(function, ids, config, label, dtype_of(model))
        bound = rounding_bound(config, dtype, ids.shape[-1], config.depth)
        return Search(config, weights, ids, logits, bound), dtype

    whole, dtype = search(ids)
    likenesses: tuple[Likeness, ...] = ()
    outcome = Outcome((), 0, 0)
    if math.isfinite(whole.before) and whole.before > whole.bound:
        outcome = explain(_brief(whole, search))
        likenesses = tuple(
            Likeness(" and ".join(one.names), "; ".join(one.details), one.after, " ".join(one.fixes))
            for one in confirmed(whole, outcome.met)
        )
    top1, kl = predictions(whole.logits, whole.run({}))
    wider = (
        name for name in DTYPES if whole.before <= rounding_bound(config, name, ids.shape[-1], config.depth)
    )
    return ForeignComparison(
        label=label,
        config=config,
        dtype=dtype,
        before=whole.before,
        bound=whole.bound,
        not_finite=int((~np.isfinite(whole.logits)).sum()),
        rounding_of=next(wider, None),
        likenesses=likenesses,
        top1_agreement=top1,
        kl_divergence=kl,
        tried=outcome.tried,
        left_out=outcome.left_out,
        one_id=bool((ids == ids[..., :1]).all()),
    )


def _brief(whole: Search, search: Callable[[np.ndarray], tuple[Search, DType]]) -> Search:
    """The shortest beginning of one sequence in which the fault shows: a run of it costs little."""
    length = _BRIEF
    while length < whole.ids.shape[-1]:
        beginning = whole.ids[(*(slice(1),) * (whole.ids.ndim - 1), slice(length))]
        try:
            brief, _ = search(beginning)
        except ProbeError:  # compiled for one shape, say
            break
        if brief.before > brief.bound:
            return brief
        length *= 2
    return whole


def check_own(model: Any, tokens: Any) -> None:
    """Raise `ProbeError` unless the model's own logits are the referee's, in whose place it judges."""
    config, weights = config_of(model), to_numpy(model)
    ids = check_tokens(tokens, config, at_least=2)
    logits = activations(model, ids)["logits"].astype(np.float64)
    found = distance(logits, forward.activations(config, weights, ids)["logits"])
    bound = rounding_bound(config, dtype_of(model), ids.shape[-1], config.depth)
    if not found <= bound:
        raise ProbeError(
            f"palm's {backend_of(model)} side must be within rounding of the referee, {bound:.1e}; got "
            f"{found:.1e}. Find out why: palm compare torch jax."
        )


def _logits(
    function: Callable[[np.ndarray], Any], ids: np.ndarray, config: PaLMConfig, label: str, coarsest: DType
) -> tuple[np.ndarray, DType]:
    """The callable's logits in float64, and the dtype it gave."""
    try:
        array, own = as_numpy(function(ids.copy()))  # what it does to them is its own affair
        name = own or coarsest  # a list's numbers are wide whatever they were
    except Exception as error:
        raise ProbeError(
            f"{label} must give logits for an int64 array of ids; it raised {type(error).__name__}: {error}. "
            "Wrap it in a function that converts ids and logits."
        ) from error
    shape = (*ids.shape, config.num_tokens)
    if array.shape != shape or name not in DTYPES:
        raise ProbeError(
            f"{label} must give logits of shape {shape} in {', '.join(DTYPES)}; got "
            f"{name}{list(array.shape)}. Wrap it in a function that returns them so."
        )
    return array.astype(np.float64), next(dtype for dtype in DTYPES if dtype == name)
