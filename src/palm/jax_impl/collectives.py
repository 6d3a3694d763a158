"""What devices send one another in a step, read from the text of a compiled program.

Each operation counts as often as the loops around it run. Its bytes are what each device receives at least,
in a group of g devices, with R the bytes of the result: all-gather and all-to-all R·(g−1)/g, reduce-scatter
R·(g−1), all-reduce 2·R·(g−1)/g (as a reduce-scatter and an all-gather), collective-permute R.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

Computations = dict[str, list[str]]

_BYTES = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "s64": 8, "s32": 4, "u32": 4, "s8": 1, "u8": 1, "pred": 1}
_ARRAY = re.compile(rf"\b({'|'.join(_BYTES)})\[([\d,]*)\]")
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_OPERATION = re.compile(rf" = (.*?) ({'|'.join(_KINDS)})(-start)?\(")
_HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(r"\b(body|condition|calls|to_apply|\w+_computations?)=(?:\{([^}]*)\}|(%?[\w.-]+))")
_CONSTANT = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")
_COUNTER = re.compile(r" = [su]32\[\]\S* get-tuple-element\(.*?\), index=(\d+)")
_VALUE = re.compile(r"^\s*%([\w.-]+) = (.*)$")
# The TPU's compiler writes a reduce-scatter as a fusion of this name, of an all-reduce and a slice.
_SCATTERED = "all-reduce-scatter"


def collectives(text: str) -> dict[str, dict[str, int]]:
    """For each kind of collective, how many run in a step, and the bytes that each device receives."""
    computations, entry = _computations(text)
    found: dict[str, dict[str, int]] = {}
    for name, times in _times(computations, entry).items():
        for line in computations.get(name, ()):
            operation = _OPERATION.search(line)
            if operation is None:
                continue
            result, kind, start = operation.groups()
            sizes = [_size(*array) for array in _ARRAY.findall(result)]
            if start and kind != "all-reduce":  # a tuple of what goes in and what comes out
                sizes = [max(sizes)]
            kind = "reduce-scatter" if kind == "all-reduce" and name.startswith(_SCATTERED) else kind
            of_kind = found.setdefault(kind, {"count": 0, "bytes": 0})
            of_kind["count"] += times
            of_kind["bytes"] += times * _received(kind, sum(sizes), _group(line), name)
    return found


def _computations(text: str) -> tuple[Computations, str]:
    """The lines of each computation of a module, and the name of the one it starts with."""
    found: Computations = {}
    lines: list[str] = []
    entry = ""
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head is not None:
            lines = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)
    return found, entry


def _times(computations: Computations, entry: str) -> Counter[str]:
    """How often each computation runs: a callee stands before its callers, so from the last one back."""
    times = Counter({entry: 1})
    for name in reversed(computations):
        for line in computations[name] if times[name] else ():
            for role, callee in _called(line):
                loops = _trips(computations, line) if role == "body" else 1
                times[callee] += times[name] * loops
    return times


def _called(line: str) -> Iterator[tuple[str, str]]:
    for role, several, one in _CALLED.findall(line):
        for name in (several or one).split(", "):
            yield role, name.removeprefix("%")


def _trips(computations: Computations, line: str) -> int:
    """How often a loop runs: the limit that its condition compares the counter with, over its step."""
    roles = dict(_called(line))
    lines = list(computations[roles["condition"]])
    counters = [int(index[1]) for line in lines if (index := _COUNTER.search(line))]
    lines += [own for line in lines for _, name in _called(line) for own in computations.get(name, ())]
    limits = [int(limit) for line in lines for limit in _CONSTANT.findall(line)]
    step = _step(computations[roles["body"]], counters[0]) if counters else 1
    return -(-max(limits, default=1) // step)


def _step(body: list[str], counter: int) -> int:
    """What the body of a loop adds to the counter, by its place in the results; 1 if it is not seen."""
    values = {name: value for line in body for name, value in _VALUE.findall(line)}
    results = next(line for line in body if line.lstrip().startswith("ROOT "))
    new = re.findall(r"%([\w.-]+)", results[results.rindex(" tuple(") :])[counter]
    added = re.match(r"\S+ add\(%[\w.-]+, %([\w.-]+)\)", values.get(new, ""))
    limit = _CONSTANT.match(f"= {values.get(added[1], '')}") if added else None
    return int(limit[1]) if limit else 1


def _size(dtype: str, shape: str) -> int:
    return _BYTES[dtype] * math.prod(int(size) for size in shape.split(",") if size)


def _group(line: str) -> int:
    """The devices of each group, in the three ways in which groups are written."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed is not None:
        return listed[1].count(",") + 1
    by_shape = re.search(r"replica_groups=\[\d+,(\d+)\]<=", line)
    if by_shape is not None:
        return int(by_shape[1])
    of_mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if of_mesh is None:
        return 1
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", of_mesh[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", of_mesh[2]))


def _received(kind: str, size: int, group: int, computation: str) -> int:
    """Of a result of `size` bytes; of a reduce-scatter that is a fusion, the result of its all-reduce."""
    share = Fraction(group - 1, group)
    if kind == "reduce-scatter" and not computation.startswith(_SCATTERED):
        share *= group
    factors = {"all-reduce": 2 * share, "collective-permute": Fraction(1)}
    return int(size * factors.get(kind, share))
