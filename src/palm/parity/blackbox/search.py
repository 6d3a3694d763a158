"""What explains a port's logits: causes, other configs and numbers put into our side until it gives them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from palm.config import Init
from palm.parity.blackbox.configs import Changed, alternatives
from palm.parity.blackbox.guess import (
    FIXES,
    Guess,
    Search,
    causes_of,
    in_one_place,
    other_config,
    pairs_of,
)
from palm.parity.blackbox.scalars import fit, roundest, scalars
from palm.parity.explain.causes.building_blocks import times
from palm.parity.explain.replay import distance
from palm.spec.forward import REFEREE

# Two causes at once are looked for among this many that come closest alone.
_CLOSEST = 10
# What is tried beyond single causes: multiply-adds, and for each block of a run what Python adds to them.
# A quarter of a minute on one core.
_WORK = 1e11
# Two right programs with independent errors: so many times one's own apart.
_ALIKE = math.sqrt(2)
# What is so near in units of the need is what a right program would be.
_SETTLED = math.sqrt(2)
# Distances are told apart in so many steps for each doubling.
_STEPS = 8


@dataclass(frozen=True)
class Outcome:
    """The guesses that meet the logits, how many were tried, and how many left out to save time.

    `nearest`: the single cause that takes most off the distance.
    """

    met: tuple[Guess, ...]
    tried: int
    left_out: int
    nearest: Guess | None = None


def explain(search: Search, *, is_quick: bool = False) -> Outcome:
    """Look for what meets the logits: the simplest kind of change that does, all of that kind.

    In turn: one cause, or one choice of another config; the same with another factor on the logits; several
    choices of another config at once, or one number off the lists; one cause in one block only; a loss of
    precision; two causes. What comes as near as a right port would ends the search; what is only within the
    bound goes on to the numbers, which may be nearer. `is_quick`: one cause only, as far as there is time.
    """
    return _Attempt(search).outcome(is_quick=is_quick)


class _Attempt:
    """One look for an explanation, which counts what it tries and what that costs."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.tried = self.left_out = 0
        self.allowed = int(_WORK / search.work)
        self.scaled: list[Guess] = []
        self.met: list[Guess] = []

    def outcome(self, *, is_quick: bool) -> Outcome:
        search = self.search
        causes = list(causes_of(search.config))
        tested = list(self._within_limits(causes)) if is_quick else [self._test(guess) for guess in causes]
        closest = sorted(tested, key=lambda one: one.after if math.isfinite(one.after) else math.inf)
        for stage in self._stages(tested, closest, causes):
            found = list(stage)
            self.met += found
            if is_quick or any(one.after <= _SETTLED * search.need for one in found):
                break
        return Outcome(tuple(self.met), self.tried, self.left_out, next(iter(closest), None))

    def _stages(
        self, tested: list[Guess], closest: list[Guess], causes: list[Guess]
    ) -> Iterator[Iterable[Guess]]:
        search = self.search
        others = alternatives(search.config)
        yield self._near(tested)
        yield _simplest(self._near(self._test(other_config(one)) for one in others if one.choices == 1))
        if not self.met:
            self._scale(Guess((), (), (), {}), search.exact)
            yield [one for one in self.scaled if len(one.names) == 1] or self.scaled
        if not self.met:
            several = (other_config(one) for one in others if one.choices > 1)
            yield _simplest(self._near(self._within_limits(several)) or self.scaled)
        yield self._fitted()
        if not self.met:
            yield self._near(self._within_limits(in_one_place(closest, search.config.depth)))
        if not self.met:
            yield [guess for guess in tested if search.meets(guess)]
        if not self.met:
            # Another norm goes together with causes as "mean subtraction" does.
            same_norm = [one for one in others if one.choices == 1 and one.config.norm == search.config.norm]
            pairs = pairs_of(closest[:_CLOSEST], causes, same_norm)
            yield self._near(self._within_limits(pairs)) or self.scaled

    def _near(self, guesses: Iterable[Guess]) -> list[Guess]:
        return [guess for guess in guesses if self.search.is_near(guess.after, self.search.bound)]

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
                (*guess.fixes, FIXES["logit scale"]),
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
            fix = FIXES[scalar.cause]
            yield Guess((scalar.cause,), (scalar.told(value),), (fix,), changed, search.distance(changed))

    def _convinces(self, after: float) -> bool:
        """Of a number that was fitted: one that is free takes a little off any distance."""
        return self.search.is_near(after, self.search.bound)

    def _is_as_good(self, at: Callable[[float], np.ndarray], after: float, value: float) -> bool:
        return distance(self.search.logits, at(value)) <= max(1.1 * after, 1e-15)


def confirmed(search: Search, guesses: Iterable[Guess]) -> list[Guess]:
    """The guesses that meet all logits, nearest first, one of each name: those that are as near as the best.

    A guess whose logits are no further from the best one's than rounding is from none is √2 times as far.
    Of what is nearly equally near, the one that was found first is the simplest.
    """
    again = [one._replace(after=search.distance(one.changed)) for one in guesses]
    met = [one for one in again if search.meets(one)]
    if not met:
        return []
    best = max(min(one.after for one in met), 1e-300)
    ranked = sorted(met, key=lambda one: round(_STEPS * math.log2(max(one.after, best) / best)))
    found: dict[tuple[str, ...], Guess] = {}
    for one in ranked:
        if one.after <= _ALIKE * best:
            found.setdefault(tuple(sorted(one.names)), one)
    exact = [one for one in found.values() if one.after <= search.bound]
    return exact or list(found.values())[:1]


def _simplest(guesses: list[Guess]) -> list[Guess]:
    """Those that change fewest fields: an eps that is too small to matter is no explanation."""
    fewest = min((one.fields for one in guesses), default=0)
    return [one for one in guesses if one.fields == fewest]
