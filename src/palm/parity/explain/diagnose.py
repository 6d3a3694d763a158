"""Why two sides differ: the known causes, tried on what departs until what was recorded is met."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from palm.config import PaLMConfig
from palm.parity.diagnosis import UNKNOWN, Diagnosis
from palm.parity.explain.causes import CAUSES, Cause, Variant
from palm.parity.explain.causes.building_blocks import with_config
from palm.parity.explain.localise import confined
from palm.parity.explain.replay import Departure, departures, distance
from palm.parity.recording.recording import Recording
from palm.spec.forward import REFEREE
from palm.spec.parameters import parameters
from palm.spec.rounding import rms
from palm.spec.taps import kind_of, tap_of

# So many tensors that differ are told one by one.
_FEW_TENSORS = 3


def diagnose(a: Recording, b: Recording) -> tuple[Diagnosis, ...]:
    """Every fault of both sides, in dataflow order, judged by a's config; empty if all is rounding.

    Configs of other weights (`share_kv`, `tie_embeddings`) cannot be judged by each other: each side is then
    held to its own.
    """
    own = b.config.to_dict()
    changed = {name: own[name] for name, value in a.config.to_dict().items() if own[name] != value}
    if a.weights.keys() == b.weights.keys():
        b = replace(b, config=a.config)
    else:
        changed = {}
    found = []
    for side, other in ((a, {}), (b, changed)):
        has_origin = False
        known: list[tuple[Cause, Variant]] = []
        for departure in departures(side):
            # What is not finite is passed on to everything; one origin is enough.
            if not math.isfinite(departure.distance):
                if has_origin:
                    continue
                has_origin = True
            found.append(_name(departure, side, other, known))
    return tuple(_told_together(list(_different_weights(a, b)), a)) + tuple(_grouped(found))


def _different_weights(a: Recording, b: Recording) -> Iterator[Diagnosis]:
    """The tensors that the sides do not share; their operations themselves may be right."""
    if a.weights is b.weights:
        return
    for name in parameters(a.config):
        if name not in a.weights or name not in b.weights:
            continue
        ours, theirs = (np.asarray(side.weights[name], np.float64) for side in (a, b))
        if a.dtype == b.dtype and not np.array_equal(ours, theirs):
            differing = int((ours != theirs).sum())
            yield Diagnosis(
                side=b.label,
                taps=(tap_of(name),),
                cause="different weights",
                detail=f"{name} differs in {differing:,} of {ours.size:,} elements",
                before=rms(ours - theirs) / (rms(ours) or 1.0),
                after=math.nan,
                bound=0.0,
                confined="",
                fix="Load the same checkpoint on both sides, or copy them with palm.convert.",
            )


def _told_together(found: list[Diagnosis], a: Recording) -> list[Diagnosis]:
    """One entry for many tensors, as of two checkpoints."""
    if len(found) <= _FEW_TENSORS:
        return found
    most = max(found, key=lambda one: one.before)
    detail = (
        f"{len(found)} of {len(a.weights)} tensors differ; most of all, {most.detail}, by {most.before:.2g} "
        "times its rms"
    )
    return [replace(most, taps=tuple(dict.fromkeys(one.taps[0] for one in found)), detail=detail)]


def _name(
    departure: Departure, side: Recording, config: Mapping[str, Any], known: list[tuple[Cause, Variant]]
) -> Diagnosis:
    """The cheapest cause that explains a departure; `config` is what the side's own has otherwise.

    `known`: what explained others of this side, to which it is added; one fault shows in many places.
    """

    def told(cause: str, detail: str, after: float, fix: str) -> Diagnosis:
        return Diagnosis(
            departure.side,
            (departure.tap,),
            cause,
            detail,
            departure.distance,
            after,
            departure.bound,
            confined(departure, side.config),
            fix,
        )

    if not math.isfinite(departure.distance):
        if _inputs_are_finite(departure):
            fix = "Look for an overflow, a division by zero, or a row of which every key is masked."
            return told("NaN origin", "its inputs are finite, but its output is not", math.nan, fix)
        return told(UNKNOWN, "its inputs are already not finite", math.nan, "")
    if config:
        after = distance(
            departure.value,
            with_config((departure.operation,), **config)[departure.operation](departure.place),
        )
        if after <= departure.bound:
            detail = ", ".join(
                f"{name} is {value!r} instead of {getattr(side.config, name)!r}"
                for name, value in config.items()
            )
            return told("config", detail, after, "Give both sides one config, cfg.resolve(backend).")
    best = (UNKNOWN, "", departure.distance, "")
    for cause, (detail, changed) in chain(tuple(known), _candidates(departure, side.config)):
        if departure.operation not in changed:
            continue
        after = distance(departure.value, changed[departure.operation](departure.place))
        if after <= departure.bound:
            known.append((cause, (detail, changed)))
            return told(cause.name, detail, after, cause.fix)
        if cause.comes_close(best[2], after):
            best = (cause.name, detail, after, cause.fix)
    dropped = _dropout(departure)
    if dropped is not None:
        return told("dropout", *dropped, "Turn dropout off: model.eval().")
    return told(*best)


def _candidates(departure: Departure, config: PaLMConfig) -> Iterator[tuple[Cause, Variant]]:
    """Every cause with its variants; after them all, those that are solved from what was recorded."""
    for cause in CAUSES:
        for variant in cause.variants(config):
            yield cause, variant
    for cause in CAUSES:
        for solve in cause.solved:
            for variant in solve(departure.operation, departure.place, departure.value):
                yield cause, variant


def _inputs_are_finite(departure: Departure) -> bool:
    with np.errstate(all="ignore"):
        return bool(np.isfinite(REFEREE[departure.operation](departure.place)).all())


def _dropout(departure: Departure) -> tuple[str, float] | None:
    """In words what was dropped, and the distance of what was not; None if it is no dropout.

    Elements here and there are 0, and the others larger by 1 / (1 − that share).
    """
    expected = REFEREE[departure.operation](departure.place)
    zero = (departure.value == 0).reshape(-1, departure.value.shape[-1])
    share = float(zero.mean())
    if not 0.005 < share < 0.95 or zero.all(0).any() or zero.all(1).any():
        return None
    kept = departure.value != 0
    after = distance(departure.value[kept], expected[kept] / (1 - share))
    # The share is an estimate of the rate; a wrong factor would leave far more.
    detail = f"{share:.1%} of the elements are 0 and the others are multiplied by {1 / (1 - share):.3g}"
    return (detail, after) if after < 0.1 * departure.distance else None


def _grouped(found: Iterable[Diagnosis]) -> Iterator[Diagnosis]:
    """One entry for the same fault in several places."""
    groups: dict[tuple[str, ...], list[Diagnosis]] = {}
    for one in found:
        key = (one.side, one.cause, one.detail)
        # What nobody knows may be one thing in q and another in k.
        groups.setdefault(key if one.cause != UNKNOWN else (*key, kind_of(one.taps[0])), []).append(one)
    for same in groups.values():
        yield replace(
            same[0],
            taps=tuple(tap for one in same for tap in one.taps),
            before=max(one.before for one in same),
            after=max(one.after for one in same),
        )
