"""One or several changes of our side, and how near they come to a port's logits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from palm.config import PaLMConfig
from palm.parity.blackbox.configs import Alternative, Changed
from palm.parity.blackbox.context import PRECEDING_IDS
from palm.parity.diagnosis import SHARE
from palm.parity.explain.causes import CAUSES, Cause
from palm.parity.explain.replay import distance
from palm.parity.judge.need import CERTAIN, LOW, RARE, Format, a_priori, allowed, noise_need, right_programs
from palm.spec.forward import REFEREE, Operation, run

_CAUSES = (*CAUSES, PRECEDING_IDS)
FIXES = {cause.name: cause.fix for cause in _CAUSES}
# Right programs need the same within a few times: at so many times that, another one changes nothing.
HOPELESS = 10.0
# What Python adds to the multiply-adds of a block.
_OVERHEAD = 4e6


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
    """Foreign logits of some ids, and what our program with some operations changed is away from them.

    `dtype`: what they were computed in. `own`: what palm's own models in it are off by, if they were run.
    """

    config: PaLMConfig
    weights: Mapping[str, np.ndarray]
    ids: np.ndarray
    logits: np.ndarray
    dtype: Format
    own: float = 0.0

    def run(self, changed: Changed) -> np.ndarray:
        """Our logits with some operations changed."""
        return run(self.config, self.weights, self.ids, {**REFEREE, **changed})["logits"]

    def distance(self, changed: Changed) -> float:
        """Relative rms."""
        return distance(self.logits, self.run(changed))

    @cached_property
    def exact(self) -> np.ndarray:
        """The referee's logits."""
        return self.run({})

    @cached_property
    def before(self) -> float:
        """The distance with nothing changed."""
        return distance(self.logits, self.exact)

    @cached_property
    def need(self) -> float:
        """What a right program is off by."""
        noise = noise_need(self.config, self.weights, self.ids, self.exact, self.dtype)
        return max(self.own, noise)

    @cached_property
    def bound(self) -> float:
        """What rounding explains; what is needed is asked only where that matters."""
        limit = a_priori(self.config, self.dtype, self.ids.shape[-1])
        if self.dtype not in LOW and self.before <= limit:
            return limit
        return allowed(self.config, self.dtype, self.ids.shape[-1], self.need)

    @cached_property
    def right(self) -> list[np.ndarray]:
        """Logits of right programs, see `judge.need`: many, where they differ more than they usually do.

        `CERTAIN` times the need supposes that a program which upcasts nothing needs √2 times as much as one
        that does. Where rounding is amplified inside of operations, as by a norm beside a large mean, it may
        need more, and then and now err far and in a direction of its own.
        """
        given = (self.config, self.weights, self.ids, self.exact, self.dtype)
        few = list(right_programs(*given))
        if self._reach(few) <= 2**0.5 * self.need:
            return few
        return few + list(right_programs(*given, range(len(few) // 2, RARE)))

    @cached_property
    def certain(self) -> float:
        """The distance from which on a difference is proven: `CERTAIN` times the need, or what right programs
        need that upcast nothing, times what is left of it without the √2 for these."""
        usual = CERTAIN * self.need
        if self.dtype not in LOW or not usual <= self.before <= HOPELESS * self.need:
            return usual
        return max(usual, CERTAIN / 2**0.5 * self._reach(self.right))

    def _reach(self, programs: list[np.ndarray]) -> float:
        return max(distance(one, self.exact) for one in programs)

    @property
    def work(self) -> float:
        """What a run costs."""
        parameters = sum(array.size for array in self.weights.values())
        return float(parameters * self.ids.size + self.config.depth * _OVERHEAD)

    def is_near(self, after: float, bound: float) -> bool:
        """Whether it is within a bound, and at least half of the distance is gone."""
        return after <= min(bound, SHARE * self.before)

    def meets(self, guess: Guess) -> bool:
        """To rounding; a single loss of precision only roughly."""
        roughly = guess.cause is not None and guess.cause.comes_close(self.before, guess.after)
        return self.is_near(guess.after, self.bound) or roughly


def causes_of(config: PaLMConfig) -> Iterator[Guess]:
    """Every known cause, each variant of it."""
    for cause in _CAUSES:
        for detail, changed in cause.variants(config):
            yield Guess((cause.name,), (detail,), (cause.fix,), changed, cause=cause)


def in_one_place(guesses: Iterable[Guess], depth: int) -> Iterator[Guess]:
    """Each in one block only, or in the norm after the last one."""

    def only(changed: Changed, prefix: str) -> Changed:
        def at_place(kind: str, operation: Operation) -> Operation:
            return lambda at: (operation if at.prefix == prefix else REFEREE[kind])(at)

        return {kind: at_place(kind, operation) for kind, operation in changed.items()}

    places = {f"blocks.{i}.": f"in block {i}" for i in range(depth)}
    for guess in guesses:
        kinds = set(guess.changed)
        if not kinds or kinds & {"embed", "logits"} or guess.cause is None or guess.cause.rounds:
            continue
        here = places if kinds != {"norm"} else {**places, "": "in the last norm"}
        for prefix, told in here.items() if depth > 1 or len(here) > 1 else ():
            yield guess._replace(
                details=tuple(f"{detail}, {told} only" for detail in guess.details),
                changed=only(guess.changed, prefix),
            )


def other_config(one: Alternative) -> Guess:
    """Another config."""
    return Guess(("config",), (one.detail,), (one.fix,), one.under({}), fields=one.fields)


def pairs_of(closest: list[Guess], guesses: list[Guess], others: list[Alternative]) -> Iterator[Guess]:
    """Two causes, or one choice of another config and a cause of what that makes of the model."""
    for other in others:
        for guess in filter(_goes_with_another, causes_of(other.config)):
            yield Guess(
                ("config", *guess.names),
                (other.detail, *guess.details),
                (other.fix, *guess.fixes),
                other.under(guess.changed),
            )
    guesses = [guess for guess in guesses if _goes_with_another(guess)]
    for one in filter(_goes_with_another, closest):
        for guess in guesses:
            if one.names != guess.names and not one.changed.keys() & guess.changed.keys():
                yield Guess(
                    one.names + guess.names,
                    one.details + guess.details,
                    one.fixes + guess.fixes,
                    {**one.changed, **guess.changed},
                )


def _goes_with_another(guess: Guess) -> bool:
    """Whether it changes operations one by one, not the run as a whole."""
    return guess.cause is not PRECEDING_IDS
