"""The bars that speed is held to: what is asked, what was measured, whether it is met.

Every measured value comes from the raw times of a results file, and none is judged that was not measured.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from measures import Group, over, share_of_limit, utilisation
from timing import Spread

Groups = Mapping[tuple[str, str], Group]
Measure = Callable[[Groups], Spread | None]
_HOLDS = {"≥": operator.ge, "≤": operator.le}


@dataclass(frozen=True)
class Bar:
    """`what` must be at least, or at most, `asked`. `measured` is None where nothing was."""

    what: str
    sign: str
    asked: float
    measured: Spread | None

    @property
    def verdict(self) -> str:
        """Whether the median meets what is asked."""
        if self.measured is None:
            return "not measured"
        return "met" if _HOLDS[self.sign](self.measured.median, self.asked) else "not met"


def bars(groups: Sequence[Group]) -> list[Bar]:
    """Every bar, of the comparisons of one results file."""
    by_name = {(group["case"], group["name"]): group for group in groups}
    return [Bar(what, sign, asked, measure(by_name)) for what, sign, asked, measure in _BARS]


def _times(case: str, name: str, above: str, below: str) -> Measure:
    """One side's time over another's."""
    return _of(case, name, lambda group: over(group, above, below))


def _share(case: str, name: str, side: str) -> Measure:
    """The part of the machine's limit that a side reaches."""
    return _of(case, name, lambda group: share_of_limit(group, side))


def _mfu(name: str, side: str) -> Measure:
    return _of("sizes", name, lambda group: utilisation(group, side))


def _of(case: str, name: str, measure: Callable[[Group], Spread | None]) -> Measure:
    return lambda groups: measure(groups[case, name]) if (case, name) in groups else None


def _quicker(*measures: Measure) -> Measure:
    """Of one peer's ways to do the job, the one that is hardest to beat."""

    def measure(groups: Groups) -> Spread | None:
        found = [one for one in (measure(groups) for measure in measures) if one is not None]
        return min(found, key=lambda one: one.median, default=None)

    return measure


def _wings(torch: str, jax: str) -> Measure:
    """The slower wing's time over the faster's, of one config, at the length where it is largest."""

    def measure(groups: Groups) -> Spread | None:
        found = []
        for (case, name), group in groups.items():
            if case == "training" and name.endswith(", wings"):
                found += [over(group, torch, jax), over(group, jax, torch)]
        return max(filter(None, found), key=lambda one: one.median, default=None)

    return measure


_TORCH, _JAX = "n 1,024, torch", "n 1,024, JAX"
_DECODE = "batch 1, 1,024 before"
_MEMORY = "peak of training"
_BARS: tuple[tuple[str, str, float, Measure], ...] = (
    *(
        (f"torch step, n 1,024: {what}", "≥", asked, _times("training", _TORCH, above, below))
        for what, asked, above, below in (
            ("palm_lite over palm", 2.3, "palm_lite", "palm torch"),
            ("x-transformers over palm, rotary", 1.05, "x-transformers", "palm torch rotary"),
            ("palm_lite over palm in bfloat16", 4.0, "palm_lite", "palm torch, bf16"),
        )
    ),
    ("JAX step, n 1,024: palm_jax over palm", "≥", 2.0, _times("training", _JAX, "palm_jax", "palm jax")),
    (
        "JAX step, n 4,096: palm_jax over palm",
        *("≥", 4.0, _times("training", "n 4,096, JAX", "palm_jax", "palm jax")),
    ),
    ("step, any n, ALiBi: slower wing over faster", "≤", 1.2, _wings("palm torch", "palm jax alibi")),
    ("step, any n, rotary: slower wing over faster", "≤", 1.2, _wings("palm torch rotary", "palm jax")),
    ("torch step, n 1,024: share of the product limit", "≥", 0.85, _share("training", _TORCH, "palm torch")),
    ("JAX step, n 1,024: share of the product limit", "≥", 0.75, _share("training", _JAX, "palm jax")),
    *(
        (
            f"{wing} memory with remat: n 8,192 over n 2,048",
            *("≤", 4.5, _times("memory", _MEMORY, f"{side}, remat, n 8,192", f"{side}, remat, n 2,048")),
        )
        for wing, side in (("torch", "palm torch"), ("JAX", "palm jax"))
    ),
    (
        "torch decoding at 1,024: palm_lite over palm",
        *("≥", 60, _times("decode", f"{_DECODE}, torch", "palm_lite", "palm torch")),
    ),
    (
        "JAX decoding at 1,024: palm_jax over palm",
        *("≥", 60, _times("decode", f"{_DECODE}, JAX", "palm_jax", "palm jax")),
    ),
    (
        "torch decoding at 1,024: Falcon over palm, rotary",
        *("≥", 1.8),
        _quicker(
            *(
                _times("decode", f"{_DECODE}, torch", f"falcon, {cache}", "palm torch rotary")
                for cache in ("dynamic", "static")
            )
        ),
    ),
    *(
        (
            f"{wing} decoding at 1,024: share of the reading limit",
            *("≥", 0.7, _share("decode", f"{_DECODE}, {wing}", side)),
        )
        for wing, side in (("torch", "palm torch"), ("JAX", "palm jax"))
    ),
    (
        "JAX step compiled: depth 64 over depth 4",
        *("≤", 1.3, _times("compile", "training step", "palm jax, depth 64", "palm jax, depth 4")),
    ),
    ("torch step, 1 B parameters, bfloat16: MFU", "≥", 0.55, _mfu("1 B", "palm torch rotary, bf16")),
    ("JAX step, 1 B parameters, bfloat16: MFU", "≥", 0.55, _mfu("1 B", "palm jax, bf16")),
)
