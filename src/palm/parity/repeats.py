"""One comparison again and again, with other text and other drawn weights each time: how sure is it?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import Any

from palm.fields import plain
from palm.parity.answer import Answer
from palm.parity.finding import Outcome
from palm.parity.result import Comparison
from palm.spec.rounding import RATIO_BAR

# From what settles least to what settles most.
_WEIGHT: dict[Outcome, int] = {
    "agree": 0,
    "cannot tell": 1,
    "differ by rounding more than expected": 2,
    "differ": 3,
}


@dataclass(frozen=True, repr=False, eq=False)
class Repeated(Answer):
    """What several comparisons of the same two sides found together.

    `shown`: the first of those with the gravest outcome. `intervals`: of each finding's ratio the smallest,
    the median and the largest.
    """

    shown: Comparison
    seeds: tuple[int, ...]
    outcomes: tuple[Outcome, ...]
    intervals: dict[str, tuple[float, float, float]]

    @property
    def outcome(self) -> Outcome:
        """ "differ" if one proves it; losing more to rounding than expected only some of the times tells
        nothing."""
        gravest = self.shown.outcome
        if gravest == "differ by rounding more than expected" and len(set(self.outcomes)) > 1:
            return "cannot tell"
        return gravest

    @property
    def agree(self) -> bool:
        """Whether all do."""
        return self.outcome == "agree"

    @property
    def confidence(self) -> float:
        """How likely an interval holds the median of all ratios there could be: 1 − 2^(1−N) for N repeats.

        All N fall on one side of the median with probability 2 · 2^-N, whatever their distribution.
        """
        return 1.0 - 2.0 ** (1 - len(self.seeds))

    @property
    def verdict(self) -> str:
        """The verdict of the one shown, and how the others compare."""
        if len(self.seeds) == 1:
            return self.shown.verdict
        counts = {outcome: self.outcomes.count(outcome) for outcome in dict.fromkeys(self.outcomes)}
        of = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        # A single number's ratio says little.
        names = [f.name for f in self.shown.findings if f.elements > 1]
        name = max(names, key=lambda name: self.intervals[name][2])
        low, middle, high = self.intervals[name]
        told = (
            f"Of {len(self.seeds)} repeats: {of}. The largest ratio is {high:.3g}, at {name} (bar "
            f"{RATIO_BAR:g}). The median there is {middle:.3g}; with probability {self.confidence:.1%}, the "
            f"median of all possible repeats lies between {low:.3g} and {high:.3g}."
        )
        if self.outcome != self.shown.outcome:
            sides = f"{self.shown.label_a} and {self.shown.label_b}"
            return f"cannot tell whether {sides} agree: in some repeats only, {self.shown.verdict} {told}"
        return f"{self.shown.verdict} {told}"

    def to_dict(self) -> dict[str, Any]:
        """The one shown as plain values, and what the others add."""
        repeats = {
            "seeds": list(self.seeds),
            "outcomes": list(self.outcomes),
            "confidence": self.confidence,
            "intervals": {name: [plain(ratio) for ratio in of] for name, of in self.intervals.items()},
        }
        own = {"outcome": self.outcome, "agree": self.agree, "verdict": self.verdict}
        return {**self.shown.to_dict(), **own, "repeats": repeats}


class Repeats:
    """Takes comparisons one after another and keeps little of all but one: recordings are large."""

    def __init__(self) -> None:
        self._shown: Comparison | None = None
        self._seeds: list[int] = []
        self._outcomes: list[Outcome] = []
        self._ratios: dict[str, list[float]] = {}

    def add(self, seed: int, comparison: Comparison) -> None:
        """One more."""
        self._seeds.append(seed)
        self._outcomes.append(comparison.outcome)
        for name, ratio in comparison.ratios.items():
            self._ratios.setdefault(name, []).append(ratio)
        if self._shown is None or _WEIGHT[comparison.outcome] > _WEIGHT[self._shown.outcome]:
            self._shown = comparison

    def result(self) -> Repeated:
        """All of them."""
        assert self._shown is not None
        # What is not a number is beyond all numbers.
        ratios = {name: [math.inf if math.isnan(x) else x for x in of] for name, of in self._ratios.items()}
        intervals = {name: (min(of), median(of), max(of)) for name, of in ratios.items()}
        return Repeated(self._shown, tuple(self._seeds), tuple(self._outcomes), intervals)
