"""What explains a port's logits: causes, other configs and numbers put into our side until it gives them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from palm.config import Init, PaLMConfig
from palm.parity.blackbox.configs import Alternative, Changed, alternatives
from palm.parity.blackbox.scalars import fit, roundest, scalars
from palm.parity.explain.causes import CAUSES, Cause
from palm.parity.explain.causes.building_blocks import times
from palm.parity.explain.replay import distance
from palm.spec.forward import REFEREE, run

# Two causes at once are looked for among this many that come closest alone.
_CLOSEST = 10
# What is tried beyond single causes: multiply-adds, and for each block of a run what Python adds to them.
# A quarter of a minute on one core.
_WORK = 1.5e11
_OVERHEAD = 4e6
_FIXES = {cause.name: cause.fix for cause in CAUSES}


class Guess(NamedTuple):
    """One change of our side, or several, and how far its logits then are from the port's.

    `fields`: how many fields of the config it changes.
    """

    names: tuple[str, ...]
    details: tuple[str, ...]
    fixes: tuple[str, ...]
    changed: Changed
    after: float = math.nan
    cause: Cause | None = None
    fields: int = 0


@dataclass(frozen=True)
class Search:
    """Foreign logits of some ids, and what our program with some operations changed is away from them."""

    config: PaLMConfig
    weights: Mapping[str, np.ndarray]
    ids: np.ndarray
    logits: np.ndarray
    bound: float

    def run(self, changed: Changed) -> np.ndarray:
        """Our logits with some operations changed."""
        return run(self.config, self.weights, self.ids, {**REFEREE, **changed})["logits"]

    def distance(self, changed: Changed) -> float:
        """Relative rms."""
        return distance(self.logits, self.run(changed))

    @cached_property
    def before(self) -> float:
        """The distance with nothing changed."""
        return self.distance({})

    @property
    def work(self) -> float:
        """What a run costs."""
        parameters = sum(array.size for array in self.weights.values())
        return float(parameters * self.ids.size + self.config.depth * _OVERHEAD)

    def meets(self, guess: Guess) -> bool:
        """To rounding; a single loss of precision only roughly."""
        roughly = guess.cause is not None and guess.cause.comes_close(self.before, guess.after)
        return guess.after <= self.bound or roughly


@dataclass(frozen=True)
class Outcome:
    """The guesses that meet the logits, how many were tried, and how many left out to save time."""

    met: tuple[Guess, ...]
    tried: int
    left_out: int


def explain(search: Search) -> Outcome:
    """Look for what meets the logits: the simplest kind of change that does, all of that kind.

    In turn: one cause, or one choice of another config; the same with another factor on the logits; several
    choices of another config at once, or one number off the lists; a loss of precision; two causes.
    """
    return _Attempt(search).outcome()


class _Attempt:
    """One look for an explanation, which counts what it tries and what that costs."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.tried = self.left_out = 0
        self.allowed = int(_WORK / search.work)
        self.scaled: list[Guess] = []

    def outcome(self) -> Outcome:
        search = self.search
        others = alternatives(search.config)
        causes = list(_causes(search.config))
        tested = [self._test(guess) for guess in causes]
        met = self._exact(tested)
        if not met:
            met = _simplest(self._exact(self._test(_other_config(one)) for one in others if one.choices == 1))
        if not met:
            self._scale(Guess((), (), (), {}), search.run({}))
            met = [one for one in self.scaled if len(one.names) == 1] or self.scaled
        if not met:
            several = (_other_config(one) for one in others if one.choices > 1)
            met = _simplest(self._exact(self._within_limits(several)) or self.scaled)
        met = met or list(self._fitted()) or [guess for guess in tested if search.meets(guess)]
        if not met:
            closest = sorted(tested, key=lambda one: one.after if math.isfinite(one.after) else math.inf)
            # Another norm goes together with causes as "mean subtraction" does.
            same_norm = [one for one in others if one.choices == 1 and one.config.norm == search.config.norm]
            pairs = _pairs(closest[:_CLOSEST], causes, same_norm)
            met = self._exact(self._within_limits(pairs)) or self.scaled
        return Outcome(tuple(met), self.tried, self.left_out)

    def _exact(self, guesses: Iterable[Guess]) -> list[Guess]:
        return [guess for guess in guesses if guess.after <= self.search.bound]

    def _test(self, guess: Guess) -> Guess:
        """The guess with its distance; and, if another factor on its logits would meet, that one kept."""
        self.tried += 1
        logits = self.search.run(guess.changed)
        if "logit scale" not in guess.names:
            self._scale(guess, logits)
        return guess._replace(after=distance(self.search.logits, logits))

    def _scale(self, guess: Guess, logits: np.ndarray) -> None:
        given = self.search.logits
        with np.errstate(all="ignore"):
            factor = float((logits * given).sum() / (logits * logits).sum())
            after = distance(given, factor * logits)
        if not (factor > 0 and self._convinces(after)):
            return
        own = guess.changed.get("logits", REFEREE["logits"])
        scale = self.search.config.logit_scale
        value = roundest(factor * scale, partial(self._is_as_good, lambda x: x / scale * logits, after))
        if abs(value / scale - 1) <= self.search.bound:
            return
        init: Init = "reference" if self.search.config.init == "paper" else "paper"
        other = dataclasses.replace(self.search.config, init=init).logit_scale
        told = f" (init={init!r})" if math.isclose(value, other, rel_tol=self.search.bound) else ""
        self.scaled.append(
            Guess(
                (*guess.names, "logit scale"),
                (*guess.details, f"the logits are multiplied by {value:.10g} instead of {scale:.3g}{told}"),
                (*guess.fixes, _FIXES["logit scale"]),
                {**guess.changed, "logits": times(value / scale, own)},
                after,
                fields=guess.fields,
            )
        )

    def _within_limits(self, guesses: Iterable[Guess]) -> Iterator[Guess]:
        """Those that there is time for, tested; the rest is counted."""
        for guess in guesses:
            if self.allowed <= 0:
                self.left_out += 1
                continue
            self.allowed -= 1
            yield self._test(guess)

    def _fitted(self) -> Iterator[Guess]:
        """Numbers that meet the logits."""
        search = self.search
        for scalar in scalars(search.config):
            if self.allowed <= 0:
                self.left_out += 1
                continue

            def at(value: float, changed: Callable[[float], Changed] = scalar.changed) -> np.ndarray:
                self.allowed -= 1
                self.tried += 1
                return search.run(changed(value))

            value, after = fit(search.logits, at, scalar.low, scalar.high, search.before)
            if not self._convinces(after):
                continue
            value = roundest(value, partial(self._is_as_good, at, after))
            changed = scalar.changed(value)
            fix = _FIXES[scalar.cause]
            yield Guess((scalar.cause,), (scalar.told(value),), (fix,), changed, search.distance(changed))

    def _convinces(self, after: float) -> bool:
        """Of a number that was fitted: one that is free takes a little off any distance."""
        return after <= min(self.search.bound, 0.5 * self.search.before)

    def _is_as_good(self, at: Callable[[float], np.ndarray], after: float, value: float) -> bool:
        return distance(self.search.logits, at(value)) <= max(1.1 * after, 1e-15)


def confirmed(search: Search, guesses: Iterable[Guess]) -> list[Guess]:
    """The guesses that meet all logits: one of each name, exact ones before those of a lost precision."""
    found: dict[tuple[str, ...], Guess] = {}
    again = [one._replace(after=search.distance(one.changed)) for one in guesses]
    for one in sorted(filter(search.meets, again), key=lambda one: one.after > search.bound):
        names = tuple(sorted(one.names))
        if names not in found or (one.after > search.bound and one.after < found[names].after):
            found[names] = one
    exact = [one for one in found.values() if one.after <= search.bound]
    return exact or sorted(found.values(), key=lambda one: one.after)[:1]


def _causes(config: PaLMConfig) -> Iterator[Guess]:
    for cause in CAUSES:
        for detail, changed in cause.variants(config):
            yield Guess((cause.name,), (detail,), (cause.fix,), changed, cause=cause)


def _other_config(one: Alternative) -> Guess:
    return Guess(("config",), (one.detail,), (one.fix,), one.under({}), fields=one.fields)


def _simplest(guesses: list[Guess]) -> list[Guess]:
    """Those that change fewest fields: an eps that is too small to matter is no explanation."""
    fewest = min((one.fields for one in guesses), default=0)
    return [one for one in guesses if one.fields == fewest]


def _pairs(closest: list[Guess], guesses: list[Guess], others: list[Alternative]) -> Iterator[Guess]:
    """Two causes, or one choice of another config and a cause of what that makes of the model."""
    for other in others:
        for guess in _causes(other.config):
            yield Guess(
                ("config", *guess.names),
                (other.detail, *guess.details),
                (other.fix, *guess.fixes),
                other.under(guess.changed),
            )
    for one in closest:
        for guess in guesses:
            if one.names != guess.names and not one.changed.keys() & guess.changed.keys():
                yield Guess(
                    one.names + guess.names,
                    one.details + guess.details,
                    one.fixes + guess.fixes,
                    {**one.changed, **guess.changed},
                )
