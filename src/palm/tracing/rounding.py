"""How far a program's own precision takes each of its values from float64, and how far rounding must."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from palm.tracing.operation import DTYPES, Change, Noise, Operation, Own, Run
from palm.tracing.sample import EXACT

# So much of a value's elements is within what is told of its error. Where a value has few elements, of which
# one may be as good as exact by chance, or far off, the rms would say more of the one than of the value.
_SHARE = 0.99
# The error of fewer elements is a matter of chance: for these, three sets of rounding errors are tried, those
# of the numbers themselves and of other multiples of them.
FEW = 64
# Above this are the largest numbers of float64, with which masks are filled. Larger arrays are no masks.
_LARGEST, _FILL = 1e308, 1 << 20
_DRAWS = (1.0, 1.1, 1.3)
# Frameworks add up numbers of a low precision in this one.
_SUMS = 2.0**-24
# What gives its input as it is, but for its dtype: it may be there in one dtype only.
_CASTS = frozenset(
    [
        *("_to_copy", "convert_element_type", "astype", "reduce_precision", "copy", "copy_p", "clone"),
        *("stop_gradient", "optimization_barrier", "device_put", "name", "sharding_constraint"),
    ]
)
# What gives elements of its inputs as they are.
_COPIES = _CASTS | frozenset(
    [
        *("slice", "split", "index", "narrow", "select", "where", "select_n", "masked_fill", "embedding"),
        *("gather", "take", "index_select", "cat", "concatenate", "stack", "dynamic_slice", "expand", "roll"),
        *("dynamic_update_slice", "broadcast_to", "pad", "neg", "negative", "abs", "relu", "max", "maximum"),
        *(
            "min",
            "minimum",
            "clip",
            "clamp",
            "reduce_max",
            "maximum.reduce",
            "tril",
            "triu",
            "sort",
            "repeat",
        ),
        *("unbind", "chunk", "split_with_sizes", "arange", "iota", "zeros", "ones", "full", "fill", "zero"),
        *("argmax", "sign", "write", "written", "copysign"),
    ]
)
_MATMULS = frozenset(
    [
        *("mm", "bmm", "addmm", "baddbmm", "matmul", "dot_general", "dot", "einsum", "tensordot", "linear"),
        "inner",
    ]
)


@dataclass(frozen=True)
class Rounding:
    """Errors of a program's values, shape (operations,), relative to the rms that each value has in float64.

    `error`: of its own precision, as it ran; NaN where that run has no such value, or drew other random
    numbers for it. `need`: what rounding every operation once gives, adding up in float32 or better.
    Infinite: not finite, and finite in float64. `dtype`: the program's.
    """

    dtype: str
    error: np.ndarray
    need: np.ndarray


def exact(count: int) -> Rounding:
    """That of a program in float64, which is its own referee."""
    return Rounding("float64", *np.zeros((2, count)))


def unit_of(dtype: str) -> float:
    """Half the distance from 1 to the next number; 0 of what does not round, or is float64."""
    dtype = {"complex64": "float32"}.get(dtype, dtype)
    return float(ml_dtypes.finfo(dtype).eps) / 2 if DTYPES.get(dtype) else 0.0


def measured(
    run: Callable[[Change], Run],
    own: Own,
    first: Run,
    operations: Sequence[Operation],
    outputs: Mapping[str, int],
    dtype: str,
) -> Rounding:
    """The errors of the values of a program, which `run` runs with a change.

    `first`: its run in float64, in which it has `operations` and `outputs`.
    """
    pairs = paired(operations, own)
    pairs |= {index: own.outputs[name] for name, index in outputs.items() if name in own.outputs}
    error = np.full(len(operations), np.nan)
    drawn = _drawn(operations)
    for i, j in pairs.items():
        if not drawn[i]:
            error[i] = off(own.samples[j], first.samples[i])
    unit = _units(operations, own, pairs, dtype)
    sums = np.array([_terms(op, operations) for op in operations])
    computes = np.array(
        [op.kind == "operation" and op.op not in _COPIES and not op.moves for op in operations]
    )
    # An error of n sums, each rounded, is √(n/2) roundoffs of their result, if the terms have any sign or all
    # have one.
    size = np.hypot(unit, np.where(sums > 1, np.minimum(unit, _SUMS) * np.sqrt(sums / 2), 0.0))
    bits = np.full(len(operations), EXACT)
    bits[computes & (size > 0)] = np.floor(-np.log2(size[computes & (size > 0)])) - 1
    leaves = _rounded_leaves(operations, own, pairs, unit, error)
    need = np.zeros(len(operations))
    few = any(math.prod(operations[i].shape) < FEW for i in outputs.values())
    for factor in _DRAWS if few else _DRAWS[:1]:
        found = run(Change(scale=leaves, noise=Noise(bits, factor)))
        need = np.fmax(need, [off(x, y) for x, y in zip(found.samples, first.samples, strict=True)])
    return Rounding(dtype, error, need)


def _drawn(operations: Sequence[Operation]) -> np.ndarray:
    """Which values random numbers go into: another precision draws others."""
    drawn = np.zeros(len(operations), bool)
    for i, op in enumerate(operations):
        drawn[i] = op.draws or drawn[list(op.inputs)].any()
    return drawn


def disturbed(index: int, scale: float, x: np.ndarray) -> np.ndarray:
    """The factors that move the numbers x of the leaf `index` by up to `scale` of themselves.

    The largest numbers of a dtype, with which masks are filled, would overflow, and stay.
    """
    moved = 1 + scale * np.random.default_rng(index).uniform(-1, 1, x.shape)
    return np.where(np.abs(x) > _LARGEST, 1.0, moved) if x.size <= _FILL else moved


def off(x: np.ndarray, exact: np.ndarray) -> float:
    """How far 99 % of the elements are off at most, relative to the rms; NaN of what has no numbers."""
    known = np.abs(exact) <= _LARGEST  # in another dtype, the lowest number is another one
    largest = float(np.abs(exact[known]).max(initial=0.0))
    if x.shape != exact.shape or not largest:
        return math.nan
    if not np.isfinite(x[known]).all():
        return math.inf
    size = float(np.sqrt(np.mean((exact[known] / largest) ** 2)))  # so that no square overflows
    apart = np.sort(np.abs(x[known] / largest - exact[known] / largest))
    return float(apart[max(0, math.ceil(_SHARE * apart.size) - 1)]) / size


def paired(exact: Sequence[Operation], own: Own) -> dict[int, int]:
    """Which operation of the program's own run each one of the run in float64 is.

    Both compute the same in the same order, but for casts. Where they do not, as a program that asks for its
    dtype may, those before and those behind that place are known.
    """

    def computing(operations: Sequence[Operation]) -> list[int]:
        return [i for i, op in enumerate(operations) if op.kind == "operation" and op.op not in _CASTS]

    ours, theirs = computing(exact), computing(own.operations)

    def agreed(pairs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        for i, j in pairs:
            if (exact[i].op, exact[i].shape) != (own.operations[j].op, own.operations[j].shape):
                return
            yield i, j

    found = dict(agreed(zip(ours, theirs, strict=False)))
    if len(found) < max(len(ours), len(theirs)):
        found |= dict(agreed(zip(reversed(ours), reversed(theirs), strict=False)))
    return found | _leaves(exact, own)


def _leaves(exact: Sequence[Operation], own: Own) -> dict[int, int]:
    """Which leaf of the own run each leaf is: those of one name and shape come in one order."""

    def keys(operations: Sequence[Operation]) -> dict[object, int]:
        seen: Counter[object] = Counter()
        found: dict[object, int] = {}
        for i, op in enumerate(operations):
            if op.kind != "operation":
                key = (op.kind, op.name, op.shape)
                seen[key] += 1
                found[*key, seen[key]] = i
        return found

    theirs = keys(own.operations)
    return {i: theirs[key] for key, i in keys(exact).items() if key in theirs}


def _units(operations: Sequence[Operation], own: Own, pairs: Mapping[int, int], dtype: str) -> np.ndarray:
    """What each value is rounded by in the program's own run; also by the casts of it."""
    units = [unit_of(op.dtype) for op in own.operations]
    for i in range(len(units) - 1, -1, -1):
        if own.operations[i].op in _CASTS or own.operations[i].moves:
            for j in own.operations[i].inputs:
                if own.operations[j].dtype in DTYPES:
                    units[j] = max(units[j], units[i])
    found = np.full(len(operations), unit_of(dtype))
    for i, j in pairs.items():
        found[i] = units[j]
    return found


def _rounded_leaves(
    operations: Sequence[Operation], own: Own, pairs: Mapping[int, int], unit: np.ndarray, error: np.ndarray
) -> dict[int, float]:
    """By how much the leaves are off that the program rounds before it computes with them."""
    found = {}
    for i, op in enumerate(operations):
        if op.kind != "operation" and op.dtype in DTYPES and i in pairs:
            cast = unit[i] > unit_of(own.operations[pairs[i]].dtype)
            if cast or error[i] > 0:
                found[i] = float(unit[i])
    return found


def _terms(op: Operation, operations: Sequence[Operation]) -> float:
    """How many numbers an operation adds up for each of its results."""
    if op.kind != "operation" or op.op in _COPIES or op.moves:
        return 1.0
    sizes = sorted((math.prod(operations[i].shape) for i in op.inputs), reverse=True)
    if not sizes or not math.prod(op.shape):
        return 1.0
    if op.op in _MATMULS and len(sizes) > 1:
        return max(1.0, math.sqrt(sizes[0] * sizes[1] / math.prod(op.shape)))
    if "conv" in op.op and len(sizes) > 1:
        return max(1.0, sizes[-1] / op.shape[1]) if len(op.shape) > 1 else 1.0
    if any(word in op.op for word in ("norm", "softmax", "attention", "cumsum", "cumlogsumexp")):
        return float(op.shape[-1]) if op.shape else 1.0
    return max(1.0, sizes[0] / math.prod(op.shape))
