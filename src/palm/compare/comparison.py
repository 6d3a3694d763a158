"""What a comparison found: findings one by one, the outcome they add up to, and its words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from palm.compare.backward import diagnose_backward
from palm.compare.diagnosis import Diagnosis, diagnose
from palm.compare.excerpt import Excerpt
from palm.compare.measures import Prediction, plain
from palm.compare.probe import Recording
from palm.errors import WeightsError
from palm.rounding import RATIO_BAR

Kind = Literal["tap", "loss", "gradient"]
Nature = Literal["function", "rounding", "both not finite", "unproven", "too few numbers"]
Outcome = Literal["agree", "differ by rounding more than expected", "differ", "cannot tell"]


@dataclass(frozen=True)
class Finding:
    """One tap, the loss, or one gradient, measured. All numbers are relative to the rms of the referee's.

    `error_a`, `error_b`: distance of each side from the float64 referee. `cross`: distance between the two.
    `ratio`: cross over both sides' own rounding. `bound_a`, `bound_b`: largest error that rounding explains.
    `elements`: how many numbers these are the rms of. `fault`: None, or in words what is more than rounding.
    `nature`: what the fault proves:

    - "function": the sides compute different functions, or one computes another than the specification.
    - "rounding": the function is right, a side loses more of it than its dtype explains.
    - "both not finite", "unproven", "too few numbers": nothing. "unproven": a side's float64 program is not
      what the side computes, so its own rounding is unknown.
    """

    name: str
    kind: Kind
    error_a: float
    error_b: float
    cross: float
    ratio: float
    bound_a: float
    bound_b: float
    elements: int
    fault: str | None
    nature: Nature | None


@dataclass(frozen=True)
class Comparison:
    """What `palm.compare` found: `outcome` is the answer, `first_divergence` the first tap that differs.

    `differences`: what the sides do not have in common, in words: weights, fields of the config. `doubts`:
    why it may not be told. `predictions`: where the two predict most differently. `referee`: whether the
    specification itself judged both, or, in excerpts, each side's own float64 program.
    """

    label_a: str
    label_b: str
    findings: tuple[Finding, ...]
    differences: tuple[str, ...]
    doubts: tuple[str, ...]
    weights_identical: bool
    top1_agreement: float
    kl_divergence: float
    predictions: tuple[Prediction, ...]
    losses: tuple[float, float, float]
    referee: bool
    recordings: tuple[Recording, Recording] | tuple[Excerpt, Excerpt]

    @property
    def outcome(self) -> Outcome:
        """The answer: what proves a difference comes before what only hints at one."""
        natures = {finding.nature for finding in self.findings}
        if self.differences:
            return "differ"
        if self.doubts:  # of other weights, every value is another
            return "cannot tell"
        if "function" in natures:
            return "differ"
        if natures & {"both not finite", "unproven"}:
            return "cannot tell"
        if "rounding" in natures:
            return "differ by rounding more than expected"
        return "cannot tell" if "too few numbers" in natures else "agree"

    @property
    def agree(self) -> bool:
        """Whether every difference is rounding, and the sides had the same weights and config."""
        return self.outcome == "agree"

    @cached_property
    def diagnoses(self) -> tuple[Diagnosis, ...]:
        """Where the sides depart from the specification and why, in dataflow order; empty if they agree."""
        if self.agree:
            return ()
        a, b = (side.beginning if isinstance(side, Excerpt) else side for side in self.recordings)
        if a is None or b is None:
            return ()
        if isinstance(self.recordings[0], Excerpt) and self.weights_identical and a.dtype == b.dtype:
            b = replace(b, weights=a.weights)  # drawn once, and known to be the same
        try:
            with np.errstate(all="ignore"):  # what was recorded need not be finite
                found = diagnose(a, b)
        except (WeightsError, MemoryError):  # of weights drawn again: not the recorded ones, or too many
            return ()
        if found or isinstance(self.recordings[0], Excerpt):
            return found
        return tuple(d for i in range(2) for d in self._backward(i))

    def _backward(self, which: int) -> Iterator[Diagnosis]:
        """Faults of one side's gradients; none if its forward pass is not right."""
        side = self.recordings[which]
        assert isinstance(side, Recording)
        measured = [(f, (f.error_a, f.error_b)[which], (f.bound_a, f.bound_b)[which]) for f in self.findings]
        if any(error > bound for f, error, bound in measured if f.kind != "gradient"):
            return
        off = {
            finding.name.removeprefix("grad:"): bound
            for finding, error, bound in measured
            if finding.kind == "gradient" and (error > bound or not math.isfinite(error))
        }
        if off:
            # In the order of the parameters, which is that of the forward pass.
            yield from diagnose_backward(side, dict(reversed(off.items())))

    @property
    def first_divergence(self) -> str | None:
        """The first finding, in dataflow order, that is more than rounding."""
        return next((finding.name for finding in self.findings if finding.fault), None)

    @property
    def ratios(self) -> dict[str, float]:
        """The rounding ratio by name: taps, then `loss`, then gradients as `grad:NAME`."""
        return {finding.name: finding.ratio for finding in self.findings}

    @property
    def verdict(self) -> str:
        """The answer in a sentence or two."""
        both = f"{self.label_a} and {self.label_b}"
        first = next((finding for finding in self.findings if finding.fault), None)
        worst = max(self.findings, key=lambda finding: finding.ratio)
        rounding = f"every difference is rounding (largest ratio {worst.ratio:.2f}, at {worst.name}" + (
            f", of {worst.elements:,} numbers)" if worst.elements > 1 else ", a single number)"
        )
        outcome = self.outcome
        if outcome == "agree":
            return f"{both} agree: {rounding}."
        if outcome == "differ by rounding more than expected":
            assert first is not None
            return (
                f"{both} differ by rounding more than expected from {first.name} on: {first.fault}. In "
                "float64 both compute the same function."
            )
        if outcome == "cannot tell":
            told = self.doubts or (f"{first.name}: {first.fault}" if first is not None else "",)
            return f"cannot tell whether {both} agree: {'; '.join(told)}."
        if not self.differences:
            assert first is not None
            return f"{both} differ from {first.name} on: {first.fault}."
        on = (
            f"{first.name} is the first to show it: {first.fault}" if first else f"on these tokens {rounding}"
        )
        judged = f" (the referee has {self.label_a}'s)" if self.referee else ""
        return f"{both} differ: {'; '.join(self.differences)}{judged}; {on}."

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; docs/report.md describes each."""
        a, b = self.recordings
        return {
            "schema": "palm-compare",
            "version": 2,
            "outcome": self.outcome,
            "agree": self.agree,
            "verdict": self.verdict,
            "first_divergence": self.first_divergence,
            "diagnoses": [diagnosis.to_dict() for diagnosis in self.diagnoses],
            "sides": [
                {
                    "label": side.label,
                    "dtype": side.dtype,
                    "config": side.config.to_dict(),
                    "weights_sha256": side.weights_digest,
                    "environment": side.environment,
                }
                for side in (a, b)
            ],
            "differences": list(self.differences),
            "doubts": list(self.doubts),
            "weights_identical": self.weights_identical,
            "referee": self.referee,
            "tokens_shape": list(a.tokens.shape),
            "ratio_bar": RATIO_BAR,
            "loss": dict(zip(("a", "b", "referee"), map(plain, self.losses), strict=True)),
            "top1_agreement": plain(self.top1_agreement),
            "kl_divergence_nats": plain(self.kl_divergence),
            "predictions": [prediction.to_dict() for prediction in self.predictions],
            "findings": [{k: plain(v) for k, v in asdict(finding).items()} for finding in self.findings],
        }
