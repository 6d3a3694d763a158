"""Which value of one program is which value of the other, and where the two part."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from palm.errors import PalmError, ProbeError
from palm.parity.programs.scales import scales
from palm.tracing.operation import Change, Operation, Run
from palm.tracing.program import Program

# Right programs agree to 1e-13 in float64; float32 numbers differ from 6e-8 on. Between the two nothing is.
FLOOR = 1e-9
# One disturbed run is a sample: another one moves a value by so many times as much.
SAMPLE = 16.0


@dataclass(frozen=True)
class Traced:
    """A side's operations with their fingerprints, and how far rounding moves each of them."""

    program: Program
    run: Run
    tolerance: np.ndarray

    @property
    def operations(self) -> list[Operation]:
        """The side's values in the order in which they came to be."""
        return self.program.operations

    @cached_property
    def empty(self) -> np.ndarray:
        """Whether a value has no finite number that a fingerprint could be made of."""
        return ~np.isfinite(self.run.fingerprints[:, 1])

    @cached_property
    def informative(self) -> np.ndarray:
        """Whether a value's fingerprint says more than that it is constant or empty."""
        prints = self.run.fingerprints
        sizes = np.array([int(np.prod(op.shape)) for op in self.operations])
        constant = np.abs(prints[:, 6] - prints[:, 7]) < 1e-12
        return np.isfinite(prints[:, 1]) & (prints[:, 1] > 0) & ~constant & (sizes > 1)


def tolerance(base: np.ndarray, disturbed: np.ndarray) -> np.ndarray:
    """How far apart two equal fingerprints may be: the floor, and what rounding was seen to do.

    Shapes: two of (operations, 8) -> the same. Moments are relative to the rms, which is relative to itself.
    """
    scale = 1 + np.abs(base)
    scale[:, 1] = np.abs(base[:, 1])
    moved = np.abs(base - disturbed)
    relative = np.divide(moved[:, 1], scale[:, 1], out=np.zeros(len(base)), where=scale[:, 1] > 0)
    # One statistic may stand still by chance; all are moved by what moves one.
    most = np.fmax(relative, np.nanmax(np.nan_to_num(moved[:, 2:] / scale[:, 2:]), axis=1, initial=0.0))
    return (FLOOR + SAMPLE * most)[:, None] * scale


def matches(a: Traced, b: Traced) -> list[np.ndarray]:
    """For each value of a, the values of b that it may be."""
    return [counterparts(a, i, b) for i in range(len(a.run.fingerprints))]


def counterparts(a: Traced, i: int, b: Traced) -> np.ndarray:
    """The values of b that the value i of a may be: those with an equal fingerprint."""
    if a.empty[i]:
        return np.flatnonzero(b.empty)
    mine, own = a.run.fingerprints[i], a.tolerance[i]
    theirs, slack = b.run.fingerprints, b.tolerance
    near = np.abs(theirs[:, 1] - mine[1]) <= own[1] + slack[:, 1]
    rows = np.flatnonzero(near & ~b.empty)
    close = np.all(np.abs(theirs[rows] - mine) <= own + slack[rows], axis=1)
    return rows[close]


def repeated(side: Traced, index: int) -> list[int]:
    """The operations that compute what another does, on its line: itself too."""
    own, rows = what(side.operations[index]), side.run.fingerprints
    same = np.flatnonzero((rows == rows[index]).all(axis=1))
    return [i for i in {index, *map(int, same)} if what(side.operations[i]) == own]


def what(op: Operation) -> object:
    """An operation with its line and its numbers."""
    return op.op, op.shape, op.constants, op.place and (op.place.file, op.place.line)


def needed(side: Traced, matched: np.ndarray) -> np.ndarray:
    """Which values without a counterpart lead to an output through none that has one."""
    need = np.zeros(len(side.operations), bool)
    for index in side.program.outputs.values():
        need[index] = not matched[index]
    for index in range(len(need) - 1, -1, -1):
        if need[index]:
            for source in side.operations[index].inputs:
                need[source] |= not matched[source]
    return need


def entries(side: Traced, need: np.ndarray) -> list[int]:
    """Where the difference begins: needed values that were computed from matched ones only."""
    return [int(i) for i in np.flatnonzero(need) if not any(need[j] for j in side.operations[i].inputs)]


@dataclass(frozen=True)
class Alignment:
    """Two sides with what matches what."""

    a: Traced
    b: Traced
    to_b: list[np.ndarray]
    to_a: list[np.ndarray]

    @classmethod
    def of(cls, a: Traced, b: Traced) -> Alignment:
        """Every value of both with its counterparts."""
        return cls(a, b, matches(a, b), matches(b, a))

    @cached_property
    def matched_a(self) -> np.ndarray:
        """Which values of a have a counterpart."""
        return _held(self.a, np.array([len(x) > 0 for x in self.to_b]))

    @cached_property
    def matched_b(self) -> np.ndarray:
        """Which values of b have a counterpart."""
        return _held(self.b, np.array([len(x) > 0 for x in self.to_a]))


def _held(side: Traced, matched: np.ndarray) -> np.ndarray:
    """A stack whose every part has a counterpart needs none of its own."""
    matched = matched.copy()
    for i, op in enumerate(side.operations):
        if not matched[i] and op.op in ("stack", "concatenate", "cat") and op.inputs:
            matched[i] = all(matched[j] for j in op.inputs)
    return matched


def traced(program: Program, scale: dict[int, float]) -> Traced:
    """A side with its rounding: `scale` is the relative error of each leaf. Raises `ProbeError`."""
    try:
        disturbed = program.run(Change(scale=scale))
    except PalmError:
        raise
    except Exception as error:
        raise ProbeError(
            f"{program.label} must run on numbers that are off by rounding, to show what that does to it; "
            f"it raised {type(error).__name__}: {error}. Take the check of exact numbers out of it."
        ) from error
    return Traced(program, program.first, tolerance(program.first.fingerprints, disturbed.fingerprints))


def aligned(a: Program, b: Program) -> Alignment:
    """Both programs' values, each with its counterparts."""
    first, second = scales(a, b), scales(b, a)
    return Alignment.of(traced(a, first), traced(b, second))
