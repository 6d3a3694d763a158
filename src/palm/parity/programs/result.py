"""What the comparison of two programs found, in words, as plain values, and as a report."""

from __future__ import annotations

import linecache
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from palm.fields import plain
from palm.parity.answer import Answer
from palm.parity.finding import Outcome
from palm.parity.programs.parameters import Parameter
from palm.parity.programs.precision import Precision, Row
from palm.parity.programs.words import family
from palm.tracing.operation import Operation, shown

# So many names are told.
_FEW = 4


@dataclass(frozen=True)
class Site:
    """Where something is computed in one program.

    `op`: the operation in the framework's own word, or the leaf: `parameter layers.0.weight`. `file`, `line`,
    `function`: the user's own source; None where a value has no line. `module`: the module of the model, or
    JAX's name stack. `source`: what the line says. `constants`: the numbers among the operation's arguments.
    `callers`: the user's lines that called the function, as (file, line), the innermost first.
    """

    op: str
    file: str | None
    line: int | None
    function: str
    module: str
    source: str
    constants: tuple[float, ...]
    callers: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, op: Operation) -> Site:
        """The site of an operation."""
        what = op.op if op.kind == "operation" else f"{op.kind} {op.name}".strip()
        if op.place is None:
            return cls(what, None, None, "", "", "", op.constants)
        at = op.place
        source = linecache.getline(at.file, at.line).strip()
        return cls(what, at.file, at.line, at.function, at.module, source, op.constants, at.callers)

    def __str__(self) -> str:
        return self.op if self.file is None else f"{self.op} at {shown(self.file)}:{self.line}"


@dataclass(frozen=True)
class Divergence:
    """One place where two programs part.

    `a`, `b`: where it begins on each side; None where a side has nothing of its own there. `cause`: why, in a
    few words; None if palm does not know. `sentence`: the whole in words. `distance`: how far the two values
    are apart behind it, relative to themselves. `times`: how often the same is met, once for each block say.
    """

    a: Site | None
    b: Site | None
    cause: str | None
    sentence: str
    distance: float
    times: int = 1

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for one mistake that is met again."""
        one, two = ((x.file, x.line, x.function) if x is not None else None for x in (self.a, self.b))
        return one, two, self.cause

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return {**asdict(self), "distance": plain(self.distance)}


def grouped(found: Iterable[Divergence]) -> tuple[Divergence, ...]:
    """Each mistake once, with how often it is met."""
    first: dict[tuple[object, ...], Divergence] = {}
    for one in found:
        seen = first.get(one.key)
        first[one.key] = one if seen is None else replace(seen, times=seen.times + 1)
    return tuple(first.values())


@dataclass(frozen=True, repr=False, eq=False)
class ProgramComparison(Answer):
    """What `palm.compare` of two programs found.

    `divergences`: where they part, in the order in which they compute; empty if they agree. `distance`: of
    the outputs in float64; `bound`: the largest that rounding explains. `aligned`: of each side's operations
    that lead to an output, the fraction that has a counterpart or is enclosed by such. `doubts`: why it may
    not be told. `operations`: how many each side recorded. `parameters`: which is which. `constant`: those
    whose elements are all equal.

    Where they agree in float64, each side is run in its own precision as well. `losses`: where one loses more
    than it needs to; `precision`: how far the outputs of each side are off; `rows`: the error of each aligned
    operation on both sides.
    """

    label_a: str
    label_b: str
    divergences: tuple[Divergence, ...]
    doubts: tuple[str, ...]
    distance: float
    bound: float
    aligned: tuple[float, float]
    operations: tuple[int, int]
    parameters: tuple[Parameter, ...] = ()
    constant: tuple[str, ...] = ()
    precision: tuple[Precision, ...] = ()
    losses: tuple[Divergence, ...] = ()
    rows: tuple[Row, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The answer: a doubt about the programs themselves comes before what they differ in."""
        if self.doubts:
            return "cannot tell"
        if self.divergences or not self.distance <= self.bound:
            return "differ"
        return "differ by rounding more than expected" if self.losses else "agree"

    @property
    def agree(self) -> bool:
        """Whether both compute the same function of these inputs, as precisely as their dtypes let them."""
        return self.outcome == "agree"

    @property
    def verdict(self) -> str:
        """The answer in a sentence or two."""
        both = f"{self.label_a} and {self.label_b}"
        if self.doubts:
            return f"cannot tell whether {both} agree: {'; '.join(self.doubts)}."
        same = f"in float64 they compute the same (outputs {self.distance:.1e} apart)"
        if self.losses:
            lost = " ".join(one.sentence for one in self.losses)
            return f"{both} differ by rounding more than expected: {same}, but {lost}"
        if self.agree:
            return f"{both} agree: {same}.{self._hidden}"
        if not self.divergences and math.isnan(self.distance):
            return f"{both} differ: they have not the same number of outputs."
        if not self.divergences:
            return f"{both} differ: their outputs are {self.distance:.1e} apart, or of other shapes."
        more = len(self.divergences) - 1
        others = f" They part in {more} more place{'s' * (more > 1)}." if more else ""
        return f"{both} differ: {self.divergences[0].sentence}{others}"

    @property
    def _hidden(self) -> str:
        """What these parameters cannot show."""
        if not self.constant:
            return ""
        few = ", ".join(self.constant[:_FEW]) + (", …" if len(self.constant) > _FEW else "")
        one = len(self.constant) == 1
        return (
            f" But {few} hold{'s' * one} one number in all places, as before training: a mistake in how "
            f"{'it is' if one else 'they are'} used may not show. Compare again with random numbers there."
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; docs/report.md describes each key."""
        return {
            "schema": "palm-compare-programs",
            "version": 1,
            "outcome": self.outcome,
            "agree": self.agree,
            "verdict": self.verdict,
            "sides": [
                {"label": label, "operations": count, "aligned": fraction}
                for label, count, fraction in zip(
                    (self.label_a, self.label_b), self.operations, self.aligned, strict=True
                )
            ],
            "distance": plain(self.distance),
            "bound": plain(self.bound),
            "doubts": list(self.doubts),
            "divergences": [one.to_dict() for one in self.divergences],
            "losses": [one.to_dict() for one in self.losses],
            "precision": [one.to_dict() for one in self.precision],
            "rows": [one.to_dict() for one in self.rows],
            "parameters": [one.to_dict() for one in self.parameters],
            "constant": list(self.constant),
        }


def described(a: Operation | None, b: Operation | None, labels: tuple[str, str]) -> str:
    """What each side computes where they part: `a computes gelu (line 15 of mlp.py) where …`."""
    told = []
    for label, op in zip(labels, (a, b), strict=True):
        if op is None:
            told.append(f"{label} computes nothing there")
            continue
        what = (
            f"reads the {op.kind} {op.name}".rstrip()
            if op.kind != "operation"
            else f"computes {family(op.op)}"
        )
        where = f" ({op.place})" if op.place is not None else ""
        told.append(f"{label} {what}{where}")
    return " where ".join(told)
