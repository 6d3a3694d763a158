"""How far the numbers that a program is given or holds may be off."""

from __future__ import annotations

import numpy as np

from palm.tracing.operation import DTYPES
from palm.tracing.program import Program

# Relative errors: of a value that both sides hold, and of one that a side alone holds in float32.
SHARED, HELD = 2.0**-50, 2.0**-24


def scales(program: Program, other: Program) -> dict[int, float]:
    """The relative error of each float leaf of `program`: what both sides hold is exact."""
    theirs = other.first.fingerprints
    found = {}
    for i, op in enumerate(program.operations):
        if op.kind == "operation" or op.dtype not in (*DTYPES, "complex64"):
            continue
        mine = program.first.fingerprints[i]
        near = np.isclose(theirs[:, 1], mine[1], rtol=1e-12, atol=0)
        same = near & (np.abs(theirs - mine).max(axis=1) < 1e-9)
        found[i] = SHARED if same.any() or op.dtype == "float64" else HELD
    return found
