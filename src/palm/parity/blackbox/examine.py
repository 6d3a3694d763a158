"""A port's logits looked into: how far they are, what a right port needs, and what explains the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from palm.backends import available_backends, backend_of
from palm.config import PaLMConfig
from palm.errors import ProbeError
from palm.models import activations, convert
from palm.parity.blackbox.guess import HOPELESS, Guess, Search
from palm.parity.blackbox.logits import Logits
from palm.parity.blackbox.search import Outcome, confirmed, explain
from palm.parity.explain.replay import distance
from palm.parity.judge.need import CERTAIN, LOW, Format, a_priori, allowed, formats
from palm.spec.parameters import DTYPES
from palm.spec.rounding import rms

# So many positions show most faults.
_BRIEF = 32
Called = Callable[[np.ndarray], Logits]


@dataclass(frozen=True)
class Examined:
    """The comparison of all logits, what meets them, and what is known if nothing does.

    `first`: the first position, as an index into the ids, that is beyond the bound.
    """

    whole: Search
    outcome: Outcome
    met: tuple[Guess, ...]
    first: tuple[int, ...] | None


def examine(
    call: Called,
    config: PaLMConfig,
    weights: dict[str, np.ndarray],
    ids: np.ndarray,
    own: Callable[[Search], Iterable[float]],
) -> Examined:
    """Measure the logits, and look for what explains them if they are beyond what rounding needs here.

    `call` is asked for the logits of all ids, and of beginnings of the first sequence; `own` for what palm's
    own models are off by, where that may matter.
    """
    given = call(ids)
    whole = Search(config, weights, ids, given.values, given.dtype)
    if whole.dtype in LOW and whole.before > whole.need:
        whole = _with_own(whole, own(whole))
    is_finite = math.isfinite(whole.before)
    if not is_finite or whole.before <= _quiet(whole):
        return Examined(whole, Outcome((), 0, 0), (), None if is_finite else _first_beyond(whole))
    is_beyond = whole.before > whole.bound
    brief = _brief(whole, call) if is_beyond else whole
    outcome = explain(brief, is_quick=not is_beyond)
    met = confirmed(whole, outcome.met)
    if not met and outcome.met and brief is not whole:  # the whole refutes what explained the beginning
        again = explain(whole, is_quick=True)
        met = confirmed(whole, again.met)
        outcome = replace(outcome, tried=outcome.tried + again.tried)
    if met and whole.before < whole.certain:
        met = _not_rounding(whole, met)
    return Examined(whole, outcome, tuple(met), _first_beyond(whole) if is_beyond else None)


def _quiet(whole: Search) -> float:
    """What asks for no search: in a low precision, less than the bound, below which a fault could hide."""
    return whole.need if whole.dtype in LOW else whole.bound


def _not_rounding(whole: Search, met: list[Guess]) -> list[Guess]:
    """The guesses that no right program is nearer to than to the referee.

    Where rows are nearly alike, the errors of rounding all have one direction. If a wrong function lies in
    it, it explains right programs too. Errors in many directions have next to nothing in common with a
    wrong function, which is then further from each right program than the referee is.
    """

    def is_told_apart(guess: Guess) -> bool:
        wrong = whole.run(guess.changed)
        return all(distance(one, wrong) > distance(one, whole.exact) for one in whole.right)

    return [guess for guess in met if is_told_apart(guess)]


def _with_own(whole: Search, errors: Iterable[float]) -> Search:
    """With what palm's own models are off by: the first one, and where another could matter that as well."""
    for error in errors:
        whole = replace(whole, own=max(whole.own, error))
        if not whole.bound < whole.before <= HOPELESS * whole.need:
            break
    return whole


def own_errors(model: Any, whole: Search) -> Iterator[float]:
    """What palm's own models in a type are off by: that which was given, then those of other backends."""
    if whole.dtype not in DTYPES:
        return
    dtype = next(name for name in DTYPES if name == whole.dtype)
    own = backend_of(model)
    for backend in (own, *(name for name in available_backends() if name != own)):
        side = convert(model, backend=backend, dtype=dtype)
        logits = activations(side, whole.ids)["logits"].astype(np.float64)
        yield distance(logits, whole.exact)


def rounding_of(whole: Search) -> Format | None:
    """The most precise type whose rounding would explain the distance."""
    length = whole.ids.shape[-1]
    for name in formats():
        if name == whole.dtype:
            if whole.before <= whole.bound:
                return name
        elif whole.before <= a_priori(whole.config, name, length):
            need = replace(whole, dtype=name).need
            if whole.before <= allowed(whole.config, name, length, need):
                return name
    return None


def lone_position(whole: Search, right: Sequence[np.ndarray]) -> tuple[int, ...] | None:
    """The first position that is further off than right programs are there, whatever the whole says.

    `right`: logits of palm's own. Only what is beyond the bound of the whole is asked for: there, right
    programs may be further off than elsewhere.
    """
    off = _off(whole, whole.logits)
    if not (off > whole.bound).any():
        return None
    usual = np.max([_off(whole, logits) for logits in (*right, *whole.right)], 0)
    return _first(off > np.maximum(whole.bound, CERTAIN * usual))


def _first_beyond(whole: Search) -> tuple[int, ...] | None:
    """The first position whose logits are further off than the bound; None if it shows at no single one."""
    return _first(~(_off(whole, whole.logits) <= whole.bound))  # what is not finite is, too


def _off(whole: Search, logits: np.ndarray) -> np.ndarray:
    """How far the logits of each position are off, relative to the rms of all exact ones."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.sqrt(np.square(logits - whole.exact).mean(-1)) / (rms(whole.exact) or 1.0)


def _first(chosen: np.ndarray) -> tuple[int, ...] | None:
    """The index of the first position that is chosen, in any sequence."""
    places = np.argwhere(chosen)
    return tuple(int(i) for i in places[np.argmin(places[:, -1])]) if len(places) else None


def _brief(whole: Search, call: Called) -> Search:
    """The shortest beginning of one sequence in which the fault shows: a run of it costs little."""
    length = _BRIEF
    while length < whole.ids.shape[-1]:
        beginning = whole.ids[(*(slice(1),) * (whole.ids.ndim - 1), slice(length))]
        try:
            given = call(beginning)
        except ProbeError:  # compiled for one shape, say
            break
        brief = replace(whole, ids=beginning, logits=given.values, own=0.0)
        if brief.before > brief.bound:
            return brief
        length *= 2
    return whole
