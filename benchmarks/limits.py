"""What the machine can do at best: rates of matrix products and of reading memory, by each library.

A rate is called "KIND: LIBRARY, SIZE", its kind one of `KINDS`. The limit of a comparison is the call whose
rate has the best median over its rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from job import timed
from timing import Spread, ratio, spread

# The two precisions' products in FLOP/s, and reading in bytes/s.
KINDS = ("float32", "bfloat16", "bandwidth")
# (m, k, n) of an (m, k) by (k, n) product. A GPU needs larger ones to be busy.
SHAPES = ((1024, 512, 2048), (1024, 2048, 512), (2048, 2048, 2048))
GPU_SHAPES = ((8192, 4096, 16384), (8192, 8192, 8192))
# A run's rate is the median of so many calls.
CALLS = 3


def rate(amount: float, work: Callable[[], Any], wait: Callable[[Any], Any]) -> float:
    """`amount` over the median seconds of some calls, after one that is not counted."""
    wait(work())
    return amount / float(np.median([timed(work, wait)[0] for _ in range(CALLS)]))


def product_name(kind: str, library: str, shape: tuple[int, int, int]) -> str:
    return f"{kind}: {library}, {'×'.join(map(str, shape))}"


def rates_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The rates of a limit side's runs, by call."""
    return {name: [run["rates"][name] for run in runs] for name in (runs[0]["rates"] if runs else ())}


def best(rates: Mapping[str, Sequence[float]], kind: str) -> tuple[str, Sequence[float]] | None:
    """The call of that kind with the best median, and its rates; None if none was measured."""
    of_kind = [name for name in rates if name.startswith(f"{kind}: ")]
    if not of_kind:
        return None
    found = max(of_kind, key=lambda name: spread(rates[name]).median)
    return found, rates[found]


def share(amount: float, seconds: Sequence[float], limit: Sequence[float]) -> Spread:
    """Which part of the limit a side reaches that needs `seconds` for `amount`, round by round."""
    return ratio([amount / s for s in seconds], limit)
