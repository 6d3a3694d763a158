"""From two recordings to findings: where two sides differ, and how much more than rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from palm import reference, reference_grad
from palm.backends import is_model
from palm.compare.diagnosis import Diagnosis, diagnose
from palm.compare.foreign import compare_foreign
from palm.compare.measures import plain, predictions
from palm.compare.probe import Arrays, Recording, record
from palm.config import PaLMConfig
from palm.errors import ConfigError
from palm.rounding import RATIO_BAR, UNIT_ROUNDOFF, rms, rounding_bound, rounding_ratio
from palm.taps import tap_names

Kind = Literal["tap", "loss", "gradient"]
_SAME_SHAPE = ("num_tokens", "dim", "depth", "heads", "dim_head", "ff_mult")


@dataclass(frozen=True)
class Finding:
    """One tap, the loss, or one gradient, measured. All numbers are relative to the rms of the referee's.

    `error_a`, `error_b`: distance of each side from the float64 referee. `cross`: distance between the two.
    `ratio`: cross over both sides' own rounding. `bound_a`, `bound_b`: largest error that rounding explains.
    `fault`: None, or in words what is more than rounding.
    """

    name: str
    kind: Kind
    error_a: float
    error_b: float
    cross: float
    ratio: float
    bound_a: float
    bound_b: float
    fault: str | None


@dataclass(frozen=True)
class Comparison:
    """What `palm.compare` found: `agree` is the answer, `first_divergence` the first tap that differs."""

    label_a: str
    label_b: str
    findings: tuple[Finding, ...]
    differences: tuple[str, ...]
    weights_identical: bool
    top1_agreement: float
    kl_divergence: float
    losses: tuple[float, float, float]
    recordings: tuple[Recording, Recording]

    @property
    def agree(self) -> bool:
        """Whether every difference is rounding, and the sides had the same weights and config."""
        return self.weights_identical and not self.differences and not any(f.fault for f in self.findings)

    @cached_property
    def diagnoses(self) -> tuple[Diagnosis, ...]:
        """Where the sides depart from the specification and why, in dataflow order; empty if they agree."""
        return () if self.agree else diagnose(*self.recordings)

    @property
    def first_divergence(self) -> str | None:
        """The first finding, in dataflow order, that is more than rounding."""
        return next((finding.name for finding in self.findings if finding.fault), None)

    @property
    def ratios(self) -> dict[str, float]:
        """The rounding ratio by name: taps, then `loss`, then gradients as `grad:NAME`."""
        return {finding.name: finding.ratio for finding in self.findings}

    @property
    def verdict(self) -> str:
        """The answer in a sentence or two."""
        a, b = self.label_a, self.label_b
        first = next((finding for finding in self.findings if finding.fault), None)
        reasons = list(self.differences)
        if not self.weights_identical:
            reasons.append("the sides do not have the same weights")
        if first is not None:
            return "; ".join([f"{a} and {b} differ from {first.name} on: {first.fault}", *reasons]) + "."
        worst = max(self.findings, key=lambda finding: finding.ratio)
        rounding = f"every difference is rounding (largest ratio {worst.ratio:.2f}, at {worst.name})"
        if reasons:
            return f"{a} and {b} differ: {'; '.join(reasons)}; on these tokens {rounding}."
        return f"{a} and {b} agree: {rounding}."

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; what is not finite is given as text ("inf", "nan")."""
        a, b = self.recordings
        return {
            "schema": "palm-compare",
            "version": 1,
            "agree": self.agree,
            "verdict": self.verdict,
            "first_divergence": self.first_divergence,
            "diagnoses": [diagnosis.to_dict() for diagnosis in self.diagnoses],
            "sides": [
                {
                    "label": side.label,
                    "dtype": side.dtype,
                    "config": side.config.to_dict(),
                    "weights_sha256": side.weights_digest,
                    "environment": side.environment,
                }
                for side in (a, b)
            ],
            "differences": list(self.differences),
            "weights_identical": self.weights_identical,
            "tokens_shape": list(a.tokens.shape),
            "ratio_bar": RATIO_BAR,
            "loss": dict(zip(("a", "b", "referee"), map(plain, self.losses), strict=True)),
            "top1_agreement": plain(self.top1_agreement),
            "kl_divergence_nats": plain(self.kl_divergence),
            "findings": [{k: plain(v) for k, v in asdict(finding).items()} for finding in self.findings],
        }


def compare(a: Any, b: Any, tokens: Any = None, *, on_step: Callable[[str], None] = lambda step: None) -> Any:
    """Compare two sides on `tokens`: live models of palm's, or recordings of them, and get a `Comparison`.

    If one of them is a callable that is not palm's, from ids to logits, it is held against the other one, a
    model that has its weights, and what is wrong in it is named: a `ForeignComparison` (see
    `palm.compare.foreign.compare_foreign`).

    Both are held against the float64 NumPy referee on a's config and weights. See `palm.rounding` for the
    two tests. Live models run in this process; `palm compare` on the command line gives each its own.
    Tokens (..., n), n ≥ 2; recordings bring their own. Raises `TokenError`, `WeightsError` if a weight is not
    finite, `BackendError` for models that are not palm's, `ConfigError` if the shapes of the two differ.
    """
    for foreign, ours in ((a, b), (b, a)):
        if callable(foreign) and not is_model(foreign):
            return compare_foreign(foreign, ours, tokens)
    side_a = a if isinstance(a, Recording) else record(a, tokens, on_step=on_step)
    side_b = b if isinstance(b, Recording) else record(b, tokens, on_step=on_step)
    if side_a.label == side_b.label:
        side_a, side_b = _relabel(side_a, "a"), _relabel(side_b, "b")
    _check_comparable(side_a, side_b)
    weights = side_a.weights
    exact_taps = reference.activations(side_a.config, weights, side_a.tokens)
    exact_loss, exact_grads = reference_grad.value_and_grad(side_a.config, weights, side_a.tokens)
    on_step("referee")
    top1, kl = predictions(side_a.taps["logits"], side_b.taps["logits"])
    return Comparison(
        label_a=side_a.label,
        label_b=side_b.label,
        findings=tuple(_findings(side_a, side_b, exact_taps, exact_loss, exact_grads)),
        differences=tuple(_differences(side_a.config, side_b.config)),
        weights_identical=_same_values(side_a.weights, side_b.weights),
        top1_agreement=top1,
        kl_divergence=kl,
        losses=(side_a.loss, side_b.loss, exact_loss),
        recordings=(side_a, side_b),
    )


def _findings(a: Recording, b: Recording, taps: Arrays, loss: float, grads: Arrays) -> Iterable[Finding]:
    depth, length = a.config.depth, a.tokens.shape[-1]
    for name in tap_names(depth):
        blocks = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else depth * (name != "embed")
        sides = [(side, side.taps[name], side.exact_taps[name]) for side in (a, b)]
        yield _finding(name, "tap", sides, taps[name], _bounds(a, b, length, blocks))
    # Forward and back again: twice the depth; and sums over the vocabulary and over all positions besides.
    bounds = _bounds(a, b, a.tokens.size + a.config.num_tokens, 2 * depth)
    sides = [(side, np.array(side.loss), np.array(side.exact_loss)) for side in (a, b)]
    yield _finding("loss", "loss", sides, np.array(loss), bounds)
    largest = max(rms(gradient) for gradient in grads.values())
    for name, gradient in grads.items():
        if name in a.grads and name in b.grads:
            sides = [(side, side.grads[name], side.exact_grads[name]) for side in (a, b)]
            # Where a gradient nearly cancels, what rounding leaves is of the size of those that do not.
            slack = max(1.0, largest / (rms(gradient) or 1.0))
            yield _finding(f"grad:{name}", "gradient", sides, gradient, [slack * bound for bound in bounds])


def _bounds(a: Recording, b: Recording, terms: int, blocks: int) -> list[float]:
    return [rounding_bound(side.config, side.dtype, terms, blocks) for side in (a, b)]


def _finding(
    name: str,
    kind: Kind,
    sides: list[tuple[Recording, np.ndarray, np.ndarray]],
    exact: np.ndarray,
    bounds: list[float],
) -> Finding:
    """Measure one value. `sides` holds each recording with its value and its own float64 value."""
    (a, value_a, exact_a), (b, value_b, exact_b) = sides
    wide_a, wide_b = np.asarray(value_a, np.float64), np.asarray(value_b, np.float64)
    scale = rms(exact) or 1.0
    errors = [rms(wide - exact) / scale for wide in (wide_a, wide_b)]
    # A float64 side has no wider self to be measured against; the referee stands in for it.
    own = [
        error if side.dtype == "float64" else rms(wide - wider) / scale
        for side, wide, wider, error in zip((a, b), (wide_a, wide_b), (exact_a, exact_b), errors, strict=True)
    ]
    cross = rms(wide_a - wide_b) / scale
    # What float64 itself rounds between a* and b* is no difference.
    ratio = rounding_ratio(cross, math.hypot(own[0], UNIT_ROUNDOFF["float64"]), own[1])
    fault = _fault((a.label, b.label), errors, bounds, ratio)
    return Finding(name, kind, errors[0], errors[1], cross, ratio, bounds[0], bounds[1], fault)


def _fault(labels: tuple[str, str], errors: list[float], bounds: list[float], ratio: float) -> str | None:
    """In words, what is more than rounding; None if nothing is."""
    for label, error in zip(labels, errors, strict=True):
        if not math.isfinite(error):
            return f"{label} is not finite"
    outside = [
        f"{label} is {error:.1e} from the referee where rounding allows {bound:.1e}"
        for label, error, bound in zip(labels, errors, bounds, strict=True)
        if error > bound
    ]
    if ratio > RATIO_BAR:
        further = labels[int(errors[1] > errors[0])]
        outside.insert(0, f"{ratio:.3g} times their rounding apart, {further} further from the referee")
    return "; ".join(outside) or None


def _differences(a: PaLMConfig, b: PaLMConfig) -> Iterable[str]:
    for name, value in a.to_dict().items():
        if getattr(b, name) != value:
            yield f"config {name} is {value!r} on one side and {getattr(b, name)!r} on the other"


def _same_values(a: Arrays, b: Arrays) -> bool:
    """Equal as numbers: sides of different dtype may hold the same weights."""
    wide = np.float64
    return a.keys() == b.keys() and all(np.array_equal(a[n].astype(wide), b[n].astype(wide)) for n in a)


def _check_comparable(a: Recording, b: Recording) -> None:
    for name in _SAME_SHAPE:
        if getattr(a.config, name) != getattr(b.config, name):
            raise ConfigError(
                f"{name} must be the same on both sides because their taps are compared; got "
                f"{name}={getattr(a.config, name)} and {getattr(b.config, name)}. Compare equal shapes."
            )
    if not np.array_equal(a.tokens, b.tokens):
        raise ConfigError("tokens must be the same on both sides; got two arrays that differ. Record again.")


def _relabel(side: Recording, suffix: str) -> Recording:
    return replace(side, label=f"{side.label} {suffix}")
