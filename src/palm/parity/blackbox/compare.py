"""A model that is not ours: only its logits are seen, so the known causes are applied to our side until it
behaves like that: "your port is this model with half-split rotary"."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, Literal

import numpy as np

from palm.backends import backend_of, config_of, dtype_of, is_model, model_of
from palm.config import PaLMConfig
from palm.errors import BackendError, ProbeError
from palm.fields import plain
from palm.models import activations, to_numpy
from palm.parity.answer import Answer
from palm.parity.blackbox.examine import Examined, examine, rounding_of
from palm.parity.blackbox.guess import Search
from palm.parity.blackbox.logits import Logits, logits_of
from palm.parity.diagnosis import evidence
from palm.parity.judge.bounds import SENSELESS
from palm.parity.judge.need import LOW, Format
from palm.parity.judge.predictions import predictions
from palm.parity.label import label_of
from palm.parity.programs.result import Divergence
from palm.spec.rounding import unit_roundoff
from palm.spec.tokens import check_tokens

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
    explains of it in `dtype`, the type that the port computes in; `need`: what a right program in that type
    is off by here, as measured, see `palm.parity.judge.need`, and `certain`: the distance from which on a
    difference is proven; NaN where it did not matter. `rounding_of`: the widest type whose rounding would
    explain it, if there is one.
    `divergences`: where the two part, found by tracing both; `traced`: whether that was possible.
    `not_finite`: how many logits are NaN or infinite. `likenesses`: what explains it, empty if nothing known
    does; several are equally like. `tried`: variants that were; `left_out`: those, of several causes at once,
    that were not because this model's runs take too long. `one_id`: each sequence repeats one id.
    `hints`: what is known of a difference that nothing explains, in sentences.
    """

    label: str
    config: PaLMConfig
    dtype: Format
    before: float
    bound: float
    not_finite: int
    rounding_of: Format | None
    likenesses: tuple[Likeness, ...]
    top1_agreement: float
    kl_divergence: float
    tried: int
    left_out: int
    one_id: bool = False
    need: float = math.nan
    certain: float = math.nan
    hints: tuple[str, ...] = ()
    traced: bool = False
    divergences: tuple[Divergence, ...] = ()

    @property
    def agree(self) -> bool:
        """Whether the difference is rounding."""
        return self.outcome == "agree"

    @property
    def outcome(self) -> Literal["agree", "differ", "cannot tell"]:
        """The answer: what a known cause explains is a difference, also where rounding could."""
        if self.likenesses or self.not_finite or self._other_function:
            return "differ"
        if self._hidden and self.traced:  # in float64 it is the same function
            return "agree"
        if self.before <= self.bound:
            return "agree" if self.bound < SENSELESS else "cannot tell"
        return "cannot tell" if self._hidden else "differ"

    @property
    def _hidden(self) -> bool:
        """Whether the logits alone do not tell a difference from rounding."""
        return self.before <= self.bound or self.before < self.certain

    @property
    def _other_function(self) -> list[Divergence]:
        """The places where the two part in float64, but for roundings of the port's own.

        A number of a port in a low precision is rounded to it, as the factor dim^-1/2 on JAX's bfloat16
        logits: what was written cannot be told, so that values may be off by a unit roundoff u. Distances
        are relative to the rms of both values together, where that is u/√2.
        """
        number = unit_roundoff(self.dtype) / math.sqrt(2) if self.dtype in LOW else 0.0
        told = [one for one in self.divergences if "rounded to" not in (one.cause or "")]
        return [one for one in told if not one.distance <= number]

    @property
    def first_divergence(self) -> str | None:
        """`logits`, the only tap there is, unless they agree."""
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
            return f"{self.label} and palm agree: their logits differ by rounding ({self._size}).{note}"
        if not self.likenesses and not self.not_finite and self._other_function and self._hidden:
            return (
                f"{self.label} and palm differ, although rounding in {self.dtype} hides it ({self._size}): "
                f"in float64, {self._other_function[0].sentence}"
            )
        if self.not_finite:
            return f"{self.label} and palm differ: {self.not_finite:,} of its logits are not finite."
        if self.outcome == "cannot tell":
            return (
                f"cannot tell whether {self.label} and palm agree: the distance of their logits is not told "
                f"apart from rounding ({self._size}). Compare in a wider dtype, or tap by tap if you can "
                "(palm.activations)."
            )
        if not self.likenesses:
            return f"{self.label} and palm differ ({self._measured}), {self._unknown}"
        first = self.likenesses[0]
        others = "; or ".join(one.detail for one in self.likenesses[1:3])
        told = evidence(first.cause, self.before, first.after, self.bound)
        return f"{self.label} behaves like this model, but {first.detail} ({told}). {first.fix}" + (
            f" This explains it equally well: {others}." if others else ""
        )

    @property
    def _size(self) -> str:
        """How far, and in a low precision how far that is for a right program."""
        if not self.need > 0:
            return f"{self.before:.1e}"
        told = f"{self.before:.1e}, {self.before / self.need:.2g} times palm's own {self.dtype} rounding"
        hidden = f"; up to {self.bound:.1e} a fault is not told apart from rounding in {self.dtype}"
        return told + (hidden if self.dtype in LOW and self.agree else "")

    @property
    def _measured(self) -> str:
        own = f", palm's own {self.dtype} rounding is {self.need:.1e}" if self.need > 0 else ""
        return f"distance {self.before:.1e}, rounding explains at most {self.bound:.1e}{own}"

    @property
    def _unknown(self) -> str:
        hint = "Compare tap by tap if you can (palm.activations)."
        if self.rounding_of is not None:
            hint = (
                f"Rounding in {self.rounding_of} would be as large: if your function computes in "
                f"{self.rounding_of}, return {self.rounding_of} logits, to be held to that."
            )
        if self.left_out:
            hint = (
                f"palm did not try {self.left_out:,} more variants, to save time. With a smaller model it "
                f"tries all. {hint}"
            )
        known = " ".join(("", *self.hints))
        return f"and none of the {self.tried} variants that palm tried explains it.{known} {hint}"

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
            "need": plain(self.need),
            "certain": plain(self.certain),
            "not_finite": self.not_finite,
            "rounding_of": self.rounding_of,
            "likenesses": [asdict(one) for one in self.likenesses],
            "top1_agreement": plain(self.top1_agreement),
            "kl_divergence_nats": plain(self.kl_divergence),
            "tried": self.tried,
            "left_out": self.left_out,
            "hints": list(self.hints),
            "traced": self.traced,
            "divergences": [one.to_dict() for one in self.divergences],
        }


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

    found = examine(call, model_of(model), weights, ids)
    whole = found.whole
    top1, kl = predictions(whole.logits, whole.exact)
    asks = whole.dtype in LOW or whole.before > whole.bound
    return ForeignComparison(
        label=label,
        config=config,
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
        one_id=bool((ids == ids[..., :1]).all()),
        hints=tuple(_hints(found)),
    )


def _hints(found: Examined) -> Iterator[str]:
    """What is known of a difference that nothing explains."""
    whole, nearest = found.whole, found.outcome.nearest
    if found.met or found.first is None:
        return
    position = found.first[-1]
    if position:
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
    if not own.before <= own.bound:
        raise ProbeError(
            f"palm's {backend_of(model)} side must be within rounding of the referee, {own.bound:.1e}; got "
            f"{own.before:.1e}. Find out why: palm compare torch jax."
        )
