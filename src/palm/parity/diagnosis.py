"""One fault of one side: where, what, how it is known, and what to do."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from palm.fields import plain

UNKNOWN = "unknown"
# A cause takes at least so much of the distance.
SHARE = 0.5


@dataclass(frozen=True)
class Diagnosis:
    """One fault of one side: where it is, what it is, how that is known, and what to do.

    `taps`: where it shows, the same operation in one or more blocks. `cause`: its name, or "unknown";
    `detail` which variant. `before`, `after`: the largest relative rms distance of the side from the
    referee's operation on the side's own inputs, without and with the cause; `bound` what rounding explains.
    `confined`: to which heads or positions, if not to all.
    """

    side: str
    taps: tuple[str, ...]
    cause: str
    detail: str
    before: float
    after: float
    bound: float
    confined: str
    fix: str

    @property
    def sentence(self) -> str:
        """All of it in a sentence or two."""
        where = self.taps[0] + (f" and {len(self.taps) - 1} more" if len(self.taps) > 1 else "")
        place = f" ({self.confined})" if self.confined else ""
        if self.cause == UNKNOWN:
            return (
                f"{self.side} at {where}{place}: the cause is unknown (distance {self.before:.1e}, rounding "
                f"explains at most {self.bound:.1e}{self.detail and f'; {self.detail}'})."
            )
        told = evidence(self.cause, self.before, self.after, self.bound)
        return f"{self.side} at {where}{place}: {self.detail} ({told}). {self.fix}"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; what is not finite is given as text."""
        told = {key: plain(value) for key, value in asdict(self).items()}
        return {**told, "taps": list(self.taps), "sentence": self.sentence}


def evidence(cause: str, before: float, after: float, bound: float) -> str:
    """How well a cause explains a distance, in words."""
    if not math.isfinite(after):
        return f"cause: {cause}"
    return (
        f"cause: {cause}; distance {before:.1e} without it, {after:.1e} with it; rounding explains at most "
        f"{bound:.1e}"
    )
