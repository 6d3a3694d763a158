"""The explanation of a comparison: the forward pass first, the backward pass if that is right."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from palm.errors import WeightsError
from palm.parity.diagnosis import Diagnosis
from palm.parity.explain.diagnose import diagnose
from palm.parity.explain.gradients import diagnose_backward
from palm.parity.recording.excerpt import Excerpt
from palm.parity.recording.recording import Recording
from palm.parity.result import Comparison


def explained(comparison: Comparison) -> Comparison:
    """The comparison with its `diagnoses`: none if the sides agree, or if what explains them was not kept."""
    return comparison if comparison.agree else replace(comparison, diagnoses=tuple(_diagnoses(comparison)))


def _diagnoses(comparison: Comparison) -> Iterator[Diagnosis]:
    is_excerpt = isinstance(comparison.recordings[0], Excerpt)
    a, b = (side.beginning if isinstance(side, Excerpt) else side for side in comparison.recordings)
    if a is None or b is None:
        return
    if is_excerpt and comparison.weights_identical and a.dtype == b.dtype:
        b = replace(b, weights=a.weights)  # drawn once, and known to be the same
    try:
        with np.errstate(all="ignore"):  # what was recorded need not be finite
            found = diagnose(a, b)
    except (WeightsError, MemoryError):  # of weights drawn again: not the recorded ones, or too many
        return
    yield from found
    # Of gradients that are amplified rounding, any cause would be an invention.
    if not found and not is_excerpt and comparison.outcome != "cannot tell":
        yield from _backward(comparison, 0)
        yield from _backward(comparison, 1)


def _backward(comparison: Comparison, which: int) -> Iterator[Diagnosis]:
    """Faults of one side's gradients; none if its forward pass is not right."""
    side = comparison.recordings[which]
    assert isinstance(side, Recording)
    measured = [
        (f, (f.error_a, f.error_b)[which], (f.bound_a, f.bound_b)[which]) for f in comparison.findings
    ]
    if any(error > bound for f, error, bound in measured if f.kind != "gradient"):
        return
    off = {
        finding.name.removeprefix("grad:"): bound
        for finding, error, bound in measured
        if finding.kind == "gradient" and (error > bound or not math.isfinite(error))
    }
    if off:
        # In the order of the parameters, which is that of the forward pass.
        yield from diagnose_backward(side, dict(reversed(off.items())))
