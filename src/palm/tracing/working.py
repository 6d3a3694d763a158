"""Which dtype a program computes in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

from palm.tracing.memory import check_memory
from palm.tracing.operation import DTYPES, Operation

_CASTS = ("_to_copy", "astype")


def working_dtype(floats: Iterable[tuple[str, int]], default: str = "float32") -> str:
    """The dtype that a program computes in: that of most of its numbers, given as (dtype, count)."""
    sizes: Counter[str] = Counter()
    for dtype, count in floats:
        sizes[dtype] += count
    return max(sizes, key=lambda name: sizes[name], default=default)


def examined(label: str, floats: Iterable[tuple[str, int]], default: str = "float32") -> str:
    """The working dtype of a program. Raises `ProbeError` if it does not fit into memory."""
    sizes = list(floats)
    check_memory(label, sum(count for _, count in sizes))
    return working_dtype(sizes, default)


def used_as(own: str, read: Collection[str]) -> str:
    """What a leaf counts as that is read in the dtypes `read`.

    Nobody computes in a number that is only cast to less: it counts as what it is cast to.
    """
    only = next(iter(read)) if len(read) == 1 else own
    return only if DTYPES.get(only, 0) > DTYPES.get(own, 0) else own


def leaf_floats(operations: Sequence[Operation]) -> Iterator[tuple[str, int]]:
    """The dtype that each leaf of a program counts as in its own precision, and its number of elements.

    A parameter or a table of float32 that is cast to less is held in float32 on purpose.
    """
    readers: dict[int, list[int]] = {}
    for j, op in enumerate(operations):
        for i in op.inputs:
            readers.setdefault(i, []).append(j)

    def reads(i: int) -> list[Operation]:
        """What reads a value, seen through what only moves elements."""
        found = ((operations[j], j) for j in readers.get(i, ()))
        return [read for op, j in found for read in (reads(j) if op.moves else [op])]

    for i, op in enumerate(operations):
        if op.kind == "operation" or op.dtype not in DTYPES:
            continue
        readings = reads(i) if op.kind == "input" or op.dtype == "float64" else []
        read = {reading.dtype if reading.op in _CASTS else op.dtype for reading in readings}
        yield used_as(op.dtype, read), math.prod(op.shape)
