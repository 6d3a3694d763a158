"""One fault of one side: where, what, how it is known, and what to do."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from palm.fields import plain

UNKNOWN = "unknown"


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
                f"{self.side} departs at {where}{place} by {self.before:.1e}, where rounding allows "
                f"{self.bound:.1e}, for no cause that palm knows{self.detail and f': {self.detail}'}."
            )
        evidence = ""
        if math.isfinite(self.after):
            evidence = (
                f" (distance {self.before:.1e} without it, {self.after:.1e} with it, rounding allows "
                f"{self.bound:.1e})"
            )
        return f"{self.side} at {where}{place}: {self.cause}, {self.detail}{evidence}. {self.fix}"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; what is not finite is given as text."""
        told = {key: plain(value) for key, value in asdict(self).items()}
        return {**told, "taps": list(self.taps), "sentence": self.sentence}
