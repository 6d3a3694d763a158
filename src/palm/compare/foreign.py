"""A model that is not ours: only its logits are seen, so the known causes are applied to our side until it
behaves like that: "your port is this model with half-split rotary"."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from palm.backends import config_of, dtype_of, to_numpy
from palm.compare.causes import CAUSES, Cause
from palm.compare.measures import plain, predictions
from palm.compare.program import Operation, run
from palm.compare.replay import deviation
from palm.config import PaLMConfig
from palm.errors import ProbeError
from palm.params import DTYPES, DType
from palm.rounding import rounding_bound
from palm.tokens import check_tokens

# Two causes at once are looked for among this many that come closest alone.
_CLOSEST = 10
# So many positions show most faults.
_BRIEF = 32
# A thousand runs of more tokens take too long.
_LONGEST_FOR_PAIRS = 64

Changed = Mapping[str, Operation]


class Found(NamedTuple):
    """What was tried, and how far from the logits it is."""

    after: float
    causes: tuple[Cause, ...]
    details: tuple[str, ...]
    changed: Changed


@dataclass(frozen=True)
class Likeness:
    """A known cause, or two, with which our model gives the foreign one's logits."""

    cause: str
    detail: str
    after: float
    fix: str


@dataclass(frozen=True)
class ForeignComparison:
    """What `palm.compare(function, model, tokens)` found. Distances are relative rms of the logits.

    `before`: between the foreign logits and the float64 referee's on our weights; `bound`: what rounding
    explains of it in `dtype`; `rounding_of`: the widest type whose rounding would, if there is one.
    `not_finite`: how many logits are NaN or infinite. `likenesses`: what explains it, empty if nothing known
    does; several are equally like. `tried`: variants that were.
    """

    label: str
    config: PaLMConfig
    dtype: DType
    before: float
    bound: float
    not_finite: int
    rounding_of: DType | None
    likenesses: tuple[Likeness, ...]
    top1_agreement: float
    kl_divergence: float
    tried: int

    @property
    def agree(self) -> bool:
        """Whether the difference is rounding."""
        return self.before <= self.bound

    @property
    def first_divergence(self) -> str | None:
        """`logits`, the only tap there is, if they differ."""
        return None if self.agree else "logits"

    @property
    def ratios(self) -> dict[str, float]:
        """The distance in units of what rounding explains."""
        return {"logits": self.before / self.bound}

    @property
    def verdict(self) -> str:
        """The answer in a sentence or two."""
        if self.agree:
            return f"{self.label} and palm agree: their logits differ by rounding ({self.before:.1e})."
        measured = f"distance {self.before:.1e}, rounding allows {self.bound:.1e}"
        if self.not_finite:
            return f"{self.label} and palm differ: {self.not_finite:,} of its logits are not finite."
        if not self.likenesses:
            hint = "Compare tap by tap if you can (palm.activations)."
            if self.rounding_of is not None:
                hint = f"But {self.rounding_of} rounds as much: if it computes in that, return logits so."
            return (
                f"{self.label} and palm differ ({measured}), for none of the {self.tried} variants that palm "
                f"knows. {hint}"
            )
        first = self.likenesses[0]
        others = "; or ".join(f"{one.cause}: {one.detail}" for one in self.likenesses[1:3])
        return (
            f"{self.label} behaves like this model with another {first.cause}: {first.detail} ({measured}; "
            f"with it {first.after:.1e}). {first.fix}" + (f" Equally like: {others}." if others else "")
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; what is not finite is given as text."""
        return {
            "schema": "palm-compare-foreign",
            "version": 1,
            "agree": self.agree,
            "verdict": self.verdict,
            "first_divergence": self.first_divergence,
            "label": self.label,
            "dtype": self.dtype,
            "config": self.config.to_dict(),
            "before": plain(self.before),
            "bound": self.bound,
            "not_finite": self.not_finite,
            "rounding_of": self.rounding_of,
            "likenesses": [asdict(one) for one in self.likenesses],
            "top1_agreement": plain(self.top1_agreement),
            "kl_divergence_nats": plain(self.kl_divergence),
            "tried": self.tried,
        }


def compare_foreign(function: Callable[[np.ndarray], Any], model: Any, tokens: Any) -> ForeignComparison:
    """Compare a callable, ids (..., n) to logits (..., n, v), with a model of palm's that has its weights.

    The callable is given an int64 array and may return an array of any framework, of float64, float32 or
    bfloat16: the type it computes in, whose rounding it is held to. Raises `TokenError`, and `ProbeError` for
    logits of another shape or type, or if the callable fails.
    """
    config = config_of(model)
    weights = {name: np.asarray(array, np.float64) for name, array in to_numpy(model).items()}
    ids = check_tokens(tokens, config, at_least=2)
    label = getattr(function, "__name__", type(function).__name__)

    def search(ids: np.ndarray) -> tuple[_Search, DType]:
        logits, dtype = _logits(function, ids, config, label, dtype_of(model))
        bound = rounding_bound(config, dtype, ids.shape[-1], config.depth)
        return _Search(config, weights, ids, logits, bound), dtype

    whole, dtype = search(ids)
    likenesses: tuple[Likeness, ...] = ()
    tried = 0
    if math.isfinite(whole.before) and whole.before > whole.bound:
        candidates, tried = _candidates(_brief(whole, search))
        likenesses = _met(whole, candidates)
    top1, kl = predictions(whole.logits, whole.run({}))
    wider = (
        name for name in DTYPES if whole.before <= rounding_bound(config, name, ids.shape[-1], config.depth)
    )
    return ForeignComparison(
        label=label,
        config=config,
        dtype=dtype,
        before=whole.before,
        bound=whole.bound,
        not_finite=int((~np.isfinite(whole.logits)).sum()),
        rounding_of=next(wider, None),
        likenesses=likenesses,
        top1_agreement=top1,
        kl_divergence=kl,
        tried=tried,
    )


@dataclass(frozen=True)
class _Search:
    """Foreign logits of some ids, and what our program with some operations changed is away from them."""

    config: PaLMConfig
    weights: Mapping[str, np.ndarray]
    ids: np.ndarray
    logits: np.ndarray
    bound: float

    def run(self, changed: Changed) -> np.ndarray:
        return run(self.config, self.weights, self.ids, changed)["logits"]

    def distance(self, changed: Changed) -> float:
        return deviation(self.logits, self.run(changed))

    @cached_property
    def before(self) -> float:
        return self.distance({})

    def meets(self, found: Found) -> bool:
        """To rounding; a single loss of precision only roughly."""
        roughly = len(found.causes) == 1 and found.causes[0].comes_close(self.before, found.after)
        return found.after <= self.bound or roughly


def _brief(whole: _Search, search: Callable[[np.ndarray], tuple[_Search, DType]]) -> _Search:
    """The shortest beginning of one sequence in which the fault shows: a run of it costs little."""
    length = _BRIEF
    while length < whole.ids.shape[-1]:
        beginning = whole.ids[(*(slice(1),) * (whole.ids.ndim - 1), slice(length))]
        try:
            brief, _ = search(beginning)
        except ProbeError:  # compiled for one shape, say
            break
        if brief.before > brief.bound:
            return brief
        length *= 2
    return whole


def _candidates(search: _Search) -> tuple[list[Found], int]:
    """The variants, of one cause or, if none does, of two, that meet the logits; and how many were tried."""
    singles = [
        Found(search.distance(changed), (cause,), (detail,), changed)
        for cause in CAUSES
        for detail, changed in cause.variants(search.config)
    ]
    tried = len(singles)
    met = [found for found in singles if search.meets(found)]
    if not met and search.ids.size <= _LONGEST_FOR_PAIRS:
        closest = sorted(singles, key=lambda found: found.after)[:_CLOSEST]
        pairs = [
            Found(
                search.distance({**one.changed, **other.changed}),
                one.causes + other.causes,
                one.details + other.details,
                {**one.changed, **other.changed},
            )
            for one in closest
            for other in singles
            if one.causes != other.causes and not one.changed.keys() & other.changed.keys()
        ]
        tried += len(pairs)
        met = [found for found in pairs if search.meets(found)]
    return met, tried


def _met(search: _Search, candidates: list[Found]) -> tuple[Likeness, ...]:
    """The candidates that meet all logits: one of each cause, exact ones before those of a lost precision."""
    found: dict[tuple[str, ...], Likeness] = {}
    again = [one._replace(after=search.distance(one.changed)) for one in candidates]
    for one in sorted(filter(search.meets, again), key=lambda one: one.after > search.bound):
        names = tuple(sorted(cause.name for cause in one.causes))
        likeness = Likeness(
            " and ".join(cause.name for cause in one.causes),
            "; ".join(one.details),
            one.after,
            " ".join(cause.fix for cause in one.causes),
        )
        if names not in found or (one.after > search.bound and one.after < found[names].after):
            found[names] = likeness
    exact = [one for one in found.values() if one.after <= search.bound]
    return tuple(exact or sorted(found.values(), key=lambda one: one.after)[:1])


def _logits(
    function: Callable[[np.ndarray], Any], ids: np.ndarray, config: PaLMConfig, label: str, coarsest: DType
) -> tuple[np.ndarray, DType]:
    """The callable's logits in float64, and the dtype it gave."""
    try:
        given = function(ids.copy())  # what it does to them is its own affair
        if hasattr(given, "detach"):  # torch gives NumPy neither what has a gradient nor its bfloat16
            given = given.detach().cpu()
            name = str(given.dtype).removeprefix("torch.")
            array = given.double().numpy()
        else:
            array = np.asarray(given)
            # A list has no type of its own: Python's numbers are wide whatever they were.
            name = array.dtype.name if hasattr(given, "dtype") else coarsest
    except Exception as error:
        raise ProbeError(
            f"{label} must give logits for an int64 array of ids; it raised {type(error).__name__}: {error}. "
            "Wrap it in a function that converts ids and logits."
        ) from error
    shape = (*ids.shape, config.num_tokens)
    if array.shape != shape or name not in DTYPES:
        raise ProbeError(
            f"{label} must give logits of shape {shape} in {', '.join(DTYPES)}; got "
            f"{name}{list(array.shape)}. Wrap it in a function that returns them so."
        )
    return array.astype(np.float64), next(dtype for dtype in DTYPES if dtype == name)
