"""What a comparison found whose one side is seen only through its logits: the answer in numbers and words."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from palm.config import PaLMConfig
from palm.fields import plain
from palm.parity.answer import Answer
from palm.parity.diagnosis import evidence
from palm.parity.judge.bounds import SENSELESS
from palm.parity.judge.need import LOW, Format
from palm.parity.programs.result import Divergence
from palm.parity.report.words import position_text
from palm.spec.rounding import unit_roundoff

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

    `label` and `other`: what the program and the model with its weights are called; `one_model`: the program
    is that model, computed in another way (`palm.parity.run.serving`).
    `before`: between the foreign logits and the float64 referee's on our weights; `bound`: what rounding
    explains of it in `dtype`, the type that the port computes in; `need`: what a right program in that type
    is off by here, as measured, see `palm.parity.judge.need`, and `certain`: the distance from which on a
    difference is proven; NaN where it did not matter. `rounding_of`: the widest type whose rounding would
    explain it, if there is one.
    `divergences`: where the two part, found by tracing both; `traced`: whether that was possible.
    `not_finite`: how many logits are NaN or infinite. `likenesses`: what explains it, empty if nothing known
    does; several are equally like. `tried`: variants that were; `left_out`: those, of several causes at once,
    that were not because this model's runs take too long. `one_id`: each sequence repeats one id.
    `first_position`: the first whose logits are apart, as an index into the ids; None if they are nowhere.
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
    other: str = "palm"
    one_model: bool = False
    one_id: bool = False
    first_position: tuple[int, ...] | None = None
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
        if self.likenesses or self.not_finite or self._other_function or self._lone:
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
    def _lone(self) -> bool:
        """Whether single positions are apart, and rounding explains the distance of all logits together."""
        return self.one_model and self.first_position is not None and self.before <= self.bound

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
        both = f"{self.label} and {self.other}"
        if self.agree:
            note = f" {_BLIND}" if self.one_id else ""
            return f"{both} agree: their logits differ by rounding ({self._size}).{note}{self._only}"
        if not self.likenesses and not self.not_finite and self._other_function and self._hidden:
            return (
                f"{both} differ, although rounding in {self.dtype} hides it ({self._size}): "
                f"in float64, {self._other_function[0].sentence}"
            )
        if self.not_finite:
            return f"{both} differ: {self.not_finite:,} of its logits are not finite.{self._place}"
        if self.outcome == "cannot tell":
            taps = "" if self.one_model else ", or tap by tap if you can (palm.activations)"
            return (
                f"cannot tell whether {both} agree: the distance of their logits is not told apart from "
                f"rounding ({self._size}). Compare in a wider dtype{taps}."
            )
        if not self.likenesses:
            return f"{both} differ {self._alone if self._lone else f'({self._measured}), {self._unknown}'}"
        first = self.likenesses[0]
        others = "; or ".join(one.detail for one in self.likenesses[1:3])
        told = evidence(first.cause, self.before, first.after, self.bound)
        equal = f" This explains it equally well: {others}." if others else ""
        return (
            f"{self.label} behaves like this model, but {first.detail} ({told}). {first.fix}{equal}"
            f"{self._place if self.one_model else ''}"
        )

    @property
    def _alone(self) -> str:
        return (
            "at single positions, although rounding explains the distance of all logits together "
            f"({self._size}).{self._place}"
        )

    @property
    def _place(self) -> str:
        """From where on they are apart, and what they are held to, where both are one model."""
        if self.first_position is None:
            return self._only
        return f" They are apart from {position_text(self.first_position)} on.{self._only}"

    @property
    def _only(self) -> str:
        return " Only logits are compared." if self.one_model else ""

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
        hint = " Compare tap by tap if you can (palm.activations)."
        if self.rounding_of is not None:
            hint = (
                f" Rounding in {self.rounding_of} would be as large: if your function computes in "
                f"{self.rounding_of}, return {self.rounding_of} logits, to be held to that."
            )
        if self.one_model:
            hint = self._place
        if self.left_out:
            hint = (
                f" palm did not try {self.left_out:,} more variants, to save time. With a smaller model it "
                f"tries all.{hint}"
            )
        known = " ".join(("", *self.hints))
        return f"and none of the {self.tried} variants that palm tried explains it.{known}{hint}"

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
            "other": self.other,
            "one_model": self.one_model,
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
            "first_position": None if self.first_position is None else list(self.first_position),
            "hints": list(self.hints),
            "traced": self.traced,
            "divergences": [one.to_dict() for one in self.divergences],
        }
