"""One number that a port has otherwise, found from its logits: an eps, θ or factor that is on no list."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from palm.config import PaLMConfig
from palm.parity.explain.causes.attention import attended, capped, linear, masked
from palm.parity.explain.causes.building_blocks import times, with_config
from palm.parity.explain.fit import polish, search
from palm.parity.explain.replay import distance
from palm.spec import forward
from palm.spec.forward import Operation

# On a logarithmic scale, where the search begins.
_POINTS = 16


@dataclass(frozen=True)
class Scalar:
    """A number of the program: the cause that it is, its range, and what `own` value the model has."""

    cause: str
    symbol: str
    own: float
    low: float
    high: float
    changed: Callable[[float], Mapping[str, Operation]]

    def told(self, value: float) -> str:
        """In words."""
        return f"{self.symbol} {value:.10g} instead of {self.own:.3g}"


def scalars(config: PaLMConfig) -> Iterator[Scalar]:
    """What is looked for."""
    mode = config.norm_eps_mode
    other = "add" if mode == "clamp" else "clamp"
    yield Scalar("eps", "eps is", config.eps, 1e-14, 1.0, lambda x: with_config(("norm",), norm_eps=x))
    yield Scalar(
        "eps convention",
        f'eps is applied as "{other}" instead of "{mode}", with eps',
        config.eps,
        1e-14,
        1.0,
        lambda x: with_config(("norm",), norm_eps=x, norm_eps_mode=other),
    )
    if config.rotates:
        yield Scalar(
            "rotary θ",
            "rotary θ is",
            config.rope_theta,
            1.5,
            1e9,
            lambda x: with_config(("q", "k"), rope_theta=x),
        )
    else:
        yield Scalar(
            "ALiBi slopes",
            "the ALiBi slopes are multiplied by",
            1.0,
            1e-2,
            1e2,
            lambda x: attended(lambda at: masked(at, x * linear(at))),
        )
    own = config.dim_head**-0.5
    yield Scalar(
        "query scale",
        "the query scale is",
        own,
        1e-3 * own,
        1e3 * own,
        lambda x: {"attention": lambda at: forward.attend(at, masked(at, linear(at)), x)},
    )
    yield Scalar("score cap", "the scores are capped: c·tanh(x/c), c is", math.inf, 0.1, 1e3, capped)
    yield Scalar(
        "output form",
        "the logits are capped: c·tanh(x/c), c is",
        math.inf,
        0.1,
        1e3,
        lambda x: {"logits": lambda at: x * np.tanh(forward.logits(at) / x)},
    )
    yield Scalar(
        "embedding scale",
        "the embedding is multiplied by",
        1.0,
        1e-3,
        1e3,
        lambda x: {"embed": times(x, forward.embed)},
    )


def fit(
    given: np.ndarray, at: Callable[[float], np.ndarray], low: float, high: float, before: float
) -> tuple[float, float]:
    """The x in [low, high] whose at(x) is nearest to `given`, and the relative rms distance left.

    It is polished only if the search took away half of the distance `before`.
    """
    ends = math.log(low), math.log(high)

    def residual(log: float) -> np.ndarray:
        with np.errstate(all="ignore"):
            return at(math.exp(log)) - given

    log = search(residual, *ends, _POINTS)
    left = distance(given, at(math.exp(log)))
    if left <= 0.5 * before:
        log = polish(residual, log, *ends, (ends[1] - ends[0]) / _POINTS)
        left = distance(given, at(math.exp(log)))
    return math.exp(log), left


def roundest(value: float, is_as_good: Callable[[float], bool]) -> float:
    """The number of fewest digits that is as good, or the value itself."""
    for digits in range(9):
        rounded = float(f"{value:.{digits}e}")
        if is_as_good(rounded):
            return rounded
    return value
