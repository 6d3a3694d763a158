"""What a comparison found: findings one by one, the outcome they add up to, and its words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from palm.fields import plain
from palm.parity.answer import Answer
from palm.parity.diagnosis import Diagnosis
from palm.parity.finding import Finding, Outcome
from palm.parity.judge.predictions import Prediction
from palm.parity.recording.excerpt import Excerpt
from palm.parity.recording.recording import Recording
from palm.spec.rounding import RATIO_BAR


@dataclass(frozen=True, repr=False, eq=False)
class Comparison(Answer):
    """What `palm.compare` found: `outcome` is the answer, `first_divergence` the first tap that differs.

    `differences`: what the sides do not have in common, in words: weights, fields of the config. `doubts`:
    why it may not be told. `predictions`: where the two predict most differently. `referee`: whether the
    specification itself judged both, or, in excerpts, each side's own float64 program. `diagnoses`: where the
    sides depart from the specification and why, in dataflow order; empty if they agree.
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
    diagnoses: tuple[Diagnosis, ...] = ()

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
                f"{both} differ by more rounding than expected, first at {first.name}: {first.fault}. In "
                "float64 both compute the same function."
            )
        if outcome == "cannot tell":
            told = self.doubts or (f"{first.name}: {first.fault}" if first is not None else "",)
            return f"cannot tell whether {both} agree: {'; '.join(told)}."
        if not self.differences:
            assert first is not None
            return f"{both} differ, first at {first.name}: {first.fault}."
        on = (
            f"the first difference is at {first.name}: {first.fault}"
            if first
            else f"on these tokens {rounding}"
        )
        judged = (
            f" (the referee uses the weights and config of {self.label_a}, so the error of {self.label_b} is "
            "its distance from these)"
            if self.referee
            else ""
        )
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
