"""What is known of a program after it ran: its operations, where they stand in the source, what they gave."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

# The dtypes that are promoted, by how much they round: float64 not at all.
DTYPES = {"float64": 0, "float32": 1, "bfloat16": 2, "float16": 2}
# What a value is: the result of an operation, or something the program was given or holds.
Kind = Literal["operation", "input", "parameter", "constant"]


def shown(file: str) -> str:
    """A file as people name it: from the working folder if it is in it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


@dataclass(frozen=True)
class Place:
    """Where an operation stands: in the user's own source, and in which module of the model.

    `callers`: the lines, of the user's own too, that called the function, the innermost first.
    """

    file: str
    line: int
    function: str
    module: str = ""
    callers: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return f"{shown(self.file)}:{self.line}"


@dataclass(frozen=True)
class Operation:
    """One value of a program.

    `op`: the operation in the framework's own word; of a leaf, its kind. `name`: a leaf's name. `dtype`: the
    one that the program itself asked for. `inputs`: the values it was computed from. `constants`: the
    numbers among its arguments. `moves`: its elements are those of its input, in another order or shape.
    `draws`: its result is random. `rounds`: the dtype it rounds to, below the program's own.
    """

    op: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    place: Place | None = None
    name: str = ""
    inputs: tuple[int, ...] = ()
    constants: tuple[float, ...] = ()
    moves: bool = False
    draws: bool = False
    rounds: str = ""


@dataclass(frozen=True)
class Run:
    """What one run gave: a fingerprint of each value, the values asked for, and the outputs.

    `samples`: some elements of each value, of a value the same ones in every run.
    """

    fingerprints: np.ndarray
    values: Mapping[int, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    samples: Sequence[np.ndarray] = ()


@dataclass(frozen=True)
class Noise:
    """Rounding to put into a run.

    `bits`: to how many bits behind the first one each operation's result is rounded; 52 is float64. `factor`:
    what results are multiplied by while they are rounded, so that another one gives other errors.
    """

    bits: np.ndarray
    factor: float = 1.0

    def part(self, first: int, count: int) -> Noise:
        """That of `count` operations from the number `first` on."""
        return Noise(self.bits[first : first + count], self.factor)


@dataclass(frozen=True)
class Own:
    """A run of a program in its own precision, which may have other casts than the run in float64."""

    operations: Sequence[Operation]
    samples: Sequence[np.ndarray]
    outputs: Mapping[str, int]


@dataclass(frozen=True)
class Change:
    """What to do differently in a run.

    `scale`: by how much, relatively, to disturb each leaf at random. `values`: results to put in the place
    of an operation's own. `constants`: numbers to put in the place of an operation's own. `noise`: rounding
    errors for each operation. `only`: whose fingerprints are asked for; None of all.
    """

    scale: Mapping[int, float] = field(default_factory=dict)
    values: Mapping[int, np.ndarray] = field(default_factory=dict)
    constants: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    noise: Noise | None = None
    only: Collection[int] | None = None

    def asks(self, index: int) -> bool:
        """Whether the fingerprint of a value is asked for. With rounding errors nothing is aligned."""
        return self.noise is None and (self.only is None or index in self.only)


NOTHING = Change()


def with_places(operations: list[Operation]) -> list[Operation]:
    """The same operations; what the program holds has the place of what reads it first, if it has none."""
    found = list(operations)
    for operation in operations:
        for i in operation.inputs:
            if found[i].place is None and found[i].kind in ("parameter", "constant"):
                found[i] = replace(found[i], place=operation.place)
    return found
