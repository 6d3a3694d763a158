"""How precise two programs are that compute the same, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from palm.fields import plain


@dataclass(frozen=True)
class Precision:
    """How far a side's own precision takes its outputs from float64, relative to their rms.

    `error`: as it ran; `need`: what the precision needs; both of the output for which `ratio`, their
    quotient, is largest.
    """

    label: str
    dtype: str
    error: float
    need: float

    @property
    def ratio(self) -> float:
        """By how much more than needed the output is off."""
        return self.error / self.need if self.need > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {**{k: plain(v) for k, v in asdict(self).items()}, "ratio": plain(self.ratio)}


@dataclass(frozen=True)
class Row:
    """One operation of both sides, with the error that it has on each, relative to the rms of its result."""

    a: str
    b: str
    error_a: float
    error_b: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {k: plain(v) for k, v in asdict(self).items()}
