"""The plain report of two sides, as `to_dict()` gives it and report.json holds it, read for showing.

Every renderer reads a report through this, so a stored report shows what a live one shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from palm.parity.finding import Finding, Kind, Outcome

# The schema of a report on a program of which only logits are seen.
FOREIGN = "palm-compare-foreign"
# The schema of a report on two programs of anyone's.
PROGRAMS = "palm-compare-programs"
_MEASURES = ("error_a", "error_b", "cross", "ratio", "bound_a", "bound_b")


@dataclass(frozen=True)
class Reading:
    """A report of two sides: `plain` as it is stored, `findings` as objects, in dataflow order."""

    plain: Mapping[str, Any]
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Reading:
        """Numbers that JSON cannot hold are text in a report; `float` reads both."""
        return cls(
            plain,
            tuple(
                Finding(**{**entry, **{name: float(entry[name]) for name in _MEASURES}})
                for entry in plain["findings"]
            ),
        )

    @property
    def labels(self) -> tuple[str, str]:
        """What the sides are called."""
        a, b = self.plain["sides"]
        return a["label"], b["label"]

    @property
    def first_fault(self) -> Finding | None:
        """The first finding, in dataflow order, that is more than rounding."""
        return next((finding for finding in self.findings if finding.fault), None)

    @property
    def seeds(self) -> list[int]:
        """The seed of each repeat; none of a comparison that was not repeated."""
        seeds = self.plain.get("repeats", {}).get("seeds", [])
        return seeds if len(seeds) > 1 else []

    @property
    def outcome(self) -> Outcome:
        """The outcome without the training, whose own disagreement makes the report's outcome "differ"."""
        if self.plain.get("training", {"agree": True})["agree"]:
            outcome: Outcome = self.plain["outcome"]
            return outcome
        outcomes: set[Outcome] = set(self.plain["repeats"]["outcomes"])
        if len(outcomes) == 1:
            return outcomes.pop()
        return "differ" if "differ" in outcomes else "cannot tell"

    @property
    def verdict(self) -> str:
        """The verdict without the training's, which a report appends to it."""
        verdict: str = self.plain["verdict"]
        if "training" not in self.plain:
            return verdict
        alone = verdict.removesuffix(f"; {self.plain['training']['verdict']}")
        return verdict if alone == verdict else f"{alone}."

    def kind(self, *kinds: Kind) -> list[Finding]:
        """The findings of these kinds."""
        return [finding for finding in self.findings if finding.kind in kinds]

    def interval(self, name: str) -> tuple[float, float, float]:
        """Smallest, median and largest ratio of a finding over the repeats."""
        low, middle, high = map(float, self.plain["repeats"]["intervals"][name])
        return low, middle, high

    def seeds_by_outcome(self) -> dict[Outcome, list[str]]:
        """Which repeats had which outcome."""
        found: dict[Outcome, list[str]] = {}
        repeats = self.plain["repeats"]
        for seed, outcome in zip(repeats["seeds"], repeats["outcomes"], strict=True):
            found.setdefault(outcome, []).append(str(seed))
        return found
