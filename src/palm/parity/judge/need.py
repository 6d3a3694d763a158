"""What a right program in some precision needs on these weights and tokens, measured, not bounded.

`rounding_bound` is an upper limit from sizes alone, 4 to 19 times what a right program is off by: in bfloat16
a wrong activation hides below it. And where a function amplifies rounding, it is too small. What rounding
leaves *here* is measured: by the referee with the rounding errors of that precision in each operation
(`judge.noise`), and by palm's own models run in it.

Another right program may differ from these in two ways, and neither more than doubles the variance:

* It rounds elsewhere: where palm computes norms, rotations and softmax in float32, it may compute them in its
  own precision. Then as many values again are rounded, each independently: √2.
* Its errors are other draws. Two right programs with errors e and e′ are √(e² + e′²) apart, √2 times one's
  own (the same triangle as in `palm.spec.rounding`); a program that stays inside that circle is not told
  apart from rounding.

So `FACTOR` = √2·√2 = 2 times the need is what rounding explains. A fault as large as the port's own rounding
can hide in the factor, so beyond it and below `CERTAIN` = 3 times the need, nothing is proven: it is not told
apart. `benchmarks/false_alarms.py` measures right ports in NumPy, PyTorch and JAX in units of the need.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np

from palm.config import DType, PaLMConfig
from palm.parity.judge.noise import Precision, noisy
from palm.spec import forward
from palm.spec.arrays import Named
from palm.spec.parameters import DTYPES
from palm.spec.rounding import UNIT_ROUNDOFF, rms, rounding_bound, unit_roundoff

FACTOR, CERTAIN = 2.0, 3.0
# The type of a foreign program's logits; palm itself does not compute in float16.
Format: TypeAlias = DType | Literal["float16"]
LOW: tuple[Format, ...] = ("float16", "bfloat16")
_DRAWS = 3
# Of each kind: one whose errors are those of a wrong function by chance comes now and then only.
_PROGRAMS = 8
# And where their errors are unlike each other: one of so many that is further off than all others is rare.
RARE = 64


def formats() -> tuple[Format, ...]:
    """From the most precise to the least."""
    return "float64", "float32", "float16", "bfloat16"


def rounded(x: np.ndarray, to: Format) -> np.ndarray:
    """x as `to` has it, in float64."""
    with np.errstate(over="ignore"):
        return x.astype(_numpy_dtype(to)).astype(np.float64)


def holds(wide: Format, narrow: Format) -> bool:
    """Whether `wide` has all numbers of `narrow`. Neither of float16 and bfloat16 has those of the other."""
    return bool(np.can_cast(_numpy_dtype(narrow), _numpy_dtype(wide)))


def _numpy_dtype(of: Format) -> np.dtype[Any]:
    return np.dtype(np.float16) if of == "float16" else DTYPES[of]


def precision(of: Format) -> tuple[Precision, float]:
    """How palm's programs, and most, round: inside of operations and in sums at least in float32.

    And what errors of that are to be multiplied by: those of float64 are float32's, 2^-29 times as large.
    """
    single = UNIT_ROUNDOFF["float32"]
    if of == "float64":
        return Precision(single, single, single), UNIT_ROUNDOFF[of] / single
    return Precision(unit_roundoff(of), single, single), 1.0


def noise_need(config: PaLMConfig, weights: Named, ids: np.ndarray, exact: np.ndarray, of: Format) -> float:
    """Relative rms error of the logits that rounding to `of` leaves: the largest of some draws."""
    own = {name: rounded(array, of) for name, array in weights.items()}
    scale = rms(exact) or 1.0
    noise, factor = precision(of)
    with np.errstate(all="ignore"):  # float16 overflows where the referee does not
        draws = (forward.run(config, noisy(own, noise, i), ids)["logits"] for i in range(_DRAWS))
        return _largest(factor * rms(np.asarray(draw) - exact) / scale for draw in draws)


def right_programs(
    config: PaLMConfig,
    weights: Named,
    ids: np.ndarray,
    exact: np.ndarray,
    of: Format,
    draws: Iterable[int] = range(_PROGRAMS),
) -> Iterator[np.ndarray]:
    """Logits of right programs: of each draw one that upcasts inside of operations, and one that does not."""
    own = {name: rounded(array, of) for name, array in weights.items()}
    usual, factor = precision(of)
    for draw in draws:
        for noise in (usual, replace(usual, inside=usual.stored)):
            with np.errstate(all="ignore"):
                logits = np.asarray(forward.run(config, noisy(own, noise, draw), ids)["logits"])
            yield exact + factor * (logits - exact)


def _largest(values: Iterable[float]) -> float:
    return max((value for value in values if np.isfinite(value)), default=0.0)


def a_priori(config: PaLMConfig, of: Format, tokens: int) -> float:
    """`rounding_bound` of the logits."""
    if of == "float16":  # of which palm's bound is proportional to the unit roundoff, but for its sums
        ratio = unit_roundoff("float16") / unit_roundoff("bfloat16")
        return rounding_bound(config, "bfloat16", tokens, config.depth) * ratio
    return rounding_bound(config, of, tokens, config.depth)


def allowed(config: PaLMConfig, of: Format, tokens: int, need: float) -> float:
    """What rounding explains: in float32 and float64 the a-priori bound, in less what is needed here.

    Where a right program needs more than the a-priori bound, the function amplifies it: that is what counts.
    """
    limit, needed = a_priori(config, of, tokens), FACTOR * need
    if of in LOW and need <= limit:
        return min(limit, needed)
    return max(limit, needed)
