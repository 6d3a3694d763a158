"""Two programs that compute the same: how precisely each does, and where one loses precision.

What a precision needs here is measured, see `palm.tracing.rounding`: what rounding every operation gives, and
what the other program attains in the same precision, whichever is less. A program whose output is off by more
than `CERTAIN` times that loses precision: by a kernel that adds up in too few digits, positions in bfloat16,
the variance as a difference of two large numbers, an overflow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from palm.parity.judge.need import CERTAIN
from palm.parity.programs.align import SAMPLE, Alignment, Traced
from palm.parity.programs.parts import ancestry
from palm.parity.programs.precision import Precision, Row
from palm.parity.programs.result import Divergence, Site
from palm.parity.programs.words import family
from palm.tracing.operation import Operation
from palm.tracing.program import Program
from palm.tracing.rounding import FEW, Rounding, unit_of

# What float64 rounding moves by so much of its own size has no size that an error could be relative to.
_NOTHING = 1e-2
# An error comes from a value that has so much of it: a root halves it.
_MOST = 0.45


class Precisions:
    """Both sides in their own precision. `outputs`: which value each output is, on both sides."""

    def __init__(
        self,
        alignment: Alignment,
        outputs: Sequence[tuple[int, int]],
        labels: tuple[str, str],
        roundings: tuple[Rounding, Rounding],
    ) -> None:
        self.programs = (alignment.a.program, alignment.b.program)
        self.nothing = tuple(_is_rounding(side) for side in (alignment.a, alignment.b))
        self.counterparts = [
            [[j for j in js if other[j].kind == "operation"] for js in map(list, to)]
            for to, other in (
                (alignment.to_b, self.programs[1].operations),
                (alignment.to_a, self.programs[0].operations),
            )
        ]
        for i, j in outputs:
            self.counterparts[0][i] = [*self.counterparts[0][i], j]
            self.counterparts[1][j] = [*self.counterparts[1][j], i]
        self.outputs, self.labels, self.roundings = outputs, labels, roundings
        self.needs = [self.needed(k) for k in (0, 1)]

    def needed(self, k: int) -> np.ndarray:
        """What each value of side k needs to be off by: at least a unit roundoff of its precision."""
        mine, other = self.roundings[k], self.roundings[1 - k]
        need = mine.need.copy()
        if mine.dtype == other.dtype:
            for i, js in enumerate(self.counterparts[k]):
                if js:
                    need[i] = min(need[i], max(np.fmax(other.need[j], other.error[j]) for j in js))
        return np.fmax(need, unit_of(mine.dtype))

    def sides(self) -> tuple[Precision, ...]:
        """The precision of each side's outputs."""
        return tuple(
            Precision(self.labels[k], self.roundings[k].dtype, *self.worst(k))
            for k in (0, 1)
            if self.roundings[k].dtype != "float64"
        )

    def worst(self, k: int) -> tuple[float, float]:
        """Error and need of the output of side k that is furthest off."""
        found = [
            (float(self.roundings[k].error[pair[k]]), float(self.needs[k][pair[k]])) for pair in self.outputs
        ]
        return max(
            (x for x in found if x[1] > 0 and not math.isnan(x[0])),
            key=lambda x: x[0] / x[1],
            default=(0.0, 0.0),
        )

    def rows(self) -> Iterator[Row]:
        """The operations that both sides have, in a's order."""
        a, b = (program.operations for program in self.programs)
        for i, js in enumerate(self.counterparts[0]):
            errors = self.roundings[0].error[i], *(self.roundings[1].error[j] for j in js[:1])
            if (
                len(errors) == 2
                and a[i].kind == "operation"
                and not a[i].moves
                and not np.isnan(errors).any()
            ):
                yield Row(str(Site.of(a[i])), str(Site.of(b[js[0]])), *map(float, errors))

    def losses(self) -> Iterator[Divergence]:
        """Where a side loses precision, if one of its outputs does."""
        for k in (0, 1):
            lost = self.lost(k)
            at = next((pair[k] for pair in self.outputs if lost[pair[k]]), None)
            if at is not None:
                yield self.loss(k, at, lost)

    def lost(self, k: int) -> np.ndarray:
        """Which values of side k are off by more than the precision needs."""
        sizes = np.array([math.prod(op.shape) for op in self.programs[k].operations])
        factor = np.where(sizes < FEW, SAMPLE, CERTAIN)
        off = np.nan_to_num(self.roundings[k].error, nan=0.0) > factor * self.needs[k]
        return off & ~self.nothing[k]

    def loss(self, k: int, output: int, lost: np.ndarray) -> Divergence:
        """The first operation that loses precision among those that an output was made of."""
        program: Program = self.programs[k]
        made_of = ancestry(program, output, np.ones(len(program.operations), bool))
        begins = (
            i for i in sorted(made_of) if lost[i] and not lost[list(program.operations[i].inputs)].any()
        )
        at = self.origin(k, next(begins, output))
        mine = program.operations[at]
        theirs = next((self.programs[1 - k].operations[j] for j in self.counterparts[k][at]), None)
        pair: tuple[Operation | None, Operation | None] = (mine, theirs) if k == 0 else (theirs, mine)
        a, b = (None if op is None else Site.of(op) for op in pair)
        found = self.roundings[k]
        return Divergence(
            a,
            b,
            cause=f"precision lost in {found.dtype}",
            sentence=self.sentence(k, at, output),
            distance=float(found.error[output]),
        )

    def origin(self, k: int, at: int) -> int:
        """Where the error of a value comes from: most of it is in one that it was computed from, or is new.

        That may be a value which the other side does not compute: 1 − β^t in float32, from a β near 1.
        """
        errors, operations = self.roundings[k].error, self.programs[k].operations
        while True:
            own = [j for j in operations[at].inputs if operations[j].kind == "operation"]
            own = [j for j in own if not self.nothing[k][j] and errors[j] >= _MOST * errors[at]]
            if not own:
                return at
            at = max(own, key=lambda j: errors[j])

    def sentence(self, k: int, at: int, output: int) -> str:
        """What a side loses, where, and how much more than it needs that is."""
        found, need = self.roundings[k], self.needs[k]
        op = self.programs[k].operations[at]
        place = "" if op.place is None else f" ({op.place})"
        if math.isinf(found.error[at]):
            what = f"its {family(op.op)}{place} is not finite in {found.dtype}"
        else:
            times = found.error[at] / need[at]
            what = f"its {family(op.op)}{place} is off by {found.error[at]:.1e} in {found.dtype}"
            what += f", {times:.2g} times the need there" if times > 1 else ""
        times = found.error[output] / need[output]
        return f"{self.labels[k]} loses precision: {what}; its output is off by {times:.2g} times the need."


def _is_rounding(side: Traced) -> np.ndarray:
    """Which values are nothing but rounding in float64: a sum of what cancels, say."""
    rms = side.run.fingerprints[:, 1]
    return ~(side.tolerance[:, 1] < _NOTHING * rms)
