"""Is the gap between two means noise? Bootstrap intervals of differences, paired or not."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from palm.spec.random import generator

RESAMPLES = 10_000
# The share of intervals that hold the true difference, and the normal quantile that belongs to it.
LEVEL, NORMAL = 0.95, 1.959964
# More draws than these are not held at once.
_MOST_DRAWS = 1 << 22


@dataclass(frozen=True)
class Gap:
    """The mean of A minus that of B, in nats, and a 95 % interval of it from `low` to `high`.

    `samples` says of how many values each mean is: windows, or runs. `paired`: value i of A belongs to value
    i of B, and the interval is of their differences. `resolution`: losses that are closer may be one number,
    summed in another order (`palm.spec.rounding.loss_resolution`).
    """

    difference: float
    low: float
    high: float
    samples: tuple[int, int]
    paired: bool
    resolution: float = 0.0

    @property
    def is_noise(self) -> bool:
        """Whether chance alone gives means so far apart: the interval holds 0; or rounding does."""
        return self.low <= 0 <= self.high or self.is_rounding

    @property
    def is_rounding(self) -> bool:
        """Whether all of the interval is closer to 0 than losses that can be told apart."""
        return max(abs(self.low), abs(self.high)) <= self.resolution

    def told(self, a: str, b: str) -> str:
        """One sentence; `a` and `b` are what the two are called."""
        size = f"{abs(self.difference):.4g} nats"
        interval = f"95 % interval {self.low:.4g} to {self.high:.4g}"
        if self.difference == self.low == self.high == 0:
            return f"{a} and {b} have equal losses."
        side = "below" if self.difference < 0 else "above"
        found = "which is noise" if self.is_noise else "more than noise"
        if self.is_rounding:
            found = f"which is rounding: sums tell no losses apart below {self.resolution:.2g}"
        return f"The loss of {a} is {size} {side} that of {b}, {found} ({interval})."

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; in nats."""
        return {
            **dataclasses.asdict(self),
            "samples": list(self.samples),
            "noise": self.is_noise,
            "rounding": self.is_rounding,
        }


def paired_gap(differences: np.ndarray, counts: np.ndarray | None = None, *, seed: int = 0) -> Gap:
    """The gap of which each pair of values is a part.

    `differences` (m,) are of sums over `counts` (m,) tokens, or of means where there are no counts. Pairs are
    drawn anew, with their tokens. The gap is Σ differences / Σ counts. Needs m ≥ 2.
    """
    counts = np.ones(len(differences)) if counts is None else counts.astype(np.float64)
    mean = differences.sum() / counts.sum()
    # Of a ratio of sums: what is drawn anew deviates by Σ (d − mean·c) / Σ c.
    deviations = _resampled((differences - mean * counts) / counts.mean(), seed, "pairs")
    widening = student(len(differences) - 1) / NORMAL * math.sqrt(len(differences) / (len(differences) - 1))
    return _gap(mean, deviations * widening, (len(differences), len(differences)), paired=True)


def unpaired_gap(a: np.ndarray, b: np.ndarray, *, seed: int = 0) -> Gap:
    """The gap of two groups of values (m,) and (n,), which are drawn anew each by itself. Needs m, n ≥ 2.

    The degrees of freedom are Welch's.
    """
    deviations = _resampled(a - a.mean(), seed, "a") - _resampled(b - b.mean(), seed, "b")
    own, other = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    both, drawn = own + other, a.var() / len(a) + b.var() / len(b)
    widening = 1.0
    if both > 0:
        degrees = both**2 / (own**2 / (len(a) - 1) + other**2 / (len(b) - 1))
        widening = student(degrees) / NORMAL * math.sqrt(both / drawn)
    return _gap(a.mean() - b.mean(), deviations * widening, (len(a), len(b)), paired=False)


def _gap(difference: float, deviations: np.ndarray, samples: tuple[int, int], *, paired: bool) -> Gap:
    # The percentiles as they are, and not reflected: where values are skewed, these are wrong less often.
    below, above = np.quantile(deviations, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Gap(float(difference), float(difference + below), float(difference + above), samples, paired)


def _resampled(values: np.ndarray, seed: int, name: str) -> np.ndarray:
    """The means of values that are drawn anew with replacement. Shape (RESAMPLES,)."""
    draw, count = generator(seed, f"noise/{name}"), len(values)
    size = max(1, _MOST_DRAWS // count)
    return np.concatenate(
        [
            values[draw.integers(0, count, (min(size, RESAMPLES - at), count))].mean(1)
            for at in range(0, RESAMPLES, size)
        ]
    )


def student(degrees: float) -> float:
    """The quantile of Student's t that a two-sided 95 % interval needs.

    A bootstrap of few values is too narrow; this, over the normal quantile, is by how much. With
    t = √ν tan θ the density is in proportion to cos^(ν−1) θ.
    """
    angles = np.linspace(0, np.pi / 2, 1 << 14)
    density = np.clip(np.cos(angles), 0, None) ** (degrees - 1)
    reached = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(degrees) * math.tan(float(np.interp(LEVEL * reached[-1], reached, angles)))
