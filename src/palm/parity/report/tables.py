"""The tables of the HTML report as values and words; the templates make elements of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from palm.parity.finding import Finding
from palm.parity.report.reading import Reading
from palm.parity.report.words import block_and_row, fault_proof, measured, tiny
from palm.spec.taps import tap_of

# Labels up to so many characters stand beside each number of a stacked row.
_BRIEF = 16


@dataclass(frozen=True)
class Cell:
    """What a cell shows, all its digits, and what it is sorted by if not by these."""

    text: str
    title: str | None = None
    sort: str | None = None


@dataclass(frozen=True)
class Column:
    """A column that can be sorted. `first`: the order of its first click, `now`: the order it has.

    `class_` says how a cell is set: a number, words. `label`: what a cell is called where its row is stacked
    because the screen is narrow, if its text does not say it.
    """

    head: str
    first: str
    cell: Callable[[int, Finding], Cell]
    class_: str
    label: str | None = None
    now: str | None = None


@dataclass(frozen=True)
class FindingsTable:
    """One row for each finding, in dataflow order."""

    caption: str
    columns: Sequence[Column]
    findings: Sequence[Finding]

    def rows(self) -> Iterator[tuple[Finding, list[tuple[Column, Cell]]]]:
        """Each finding with its cells."""
        for i, finding in enumerate(self.findings, 1):
            yield finding, [(column, column.cell(i, finding)) for column in self.columns]


@dataclass(frozen=True)
class Pairs:
    """Two mappings beside each other: names and both values, of what differs and of what is the same."""

    differing: list[tuple[str, list[str]]]
    same: list[tuple[str, list[str]]]

    @classmethod
    def of(cls, sides: Sequence[Mapping[str, Any]]) -> Pairs:
        """What only one side has is a dash on the other."""
        rows = [
            (name, [str(side.get(name, "—")) for side in sides])
            for name in dict.fromkeys(name for side in sides for name in side)
        ]
        return cls(
            [(name, values) for name, values in rows if len(set(values)) > 1],
            [(name, values) for name, values in rows if len(set(values)) == 1],
        )


def findings_table(reading: Reading, findings: Sequence[Finding], caption: str) -> FindingsTable:
    """Every number of every finding."""
    return FindingsTable(caption, list(_columns(reading, findings)), findings)


def causes(reading: Reading, findings: Sequence[Finding]) -> dict[str, str]:
    """What a diagnosis says of each finding; of a gradient, also by the tap that its weight acts on."""
    told: dict[str, list[str]] = {}
    for one in reading.plain["diagnoses"]:
        for tap in one["taps"]:
            told.setdefault(tap, []).append(f"{one['side']}: {one['cause']}")
    found = {finding.name: list(told.get(finding.name, [])) for finding in findings}
    for finding in findings:
        if finding.kind == "gradient":
            with suppress(KeyError):
                found[finding.name] += told.get(tap_of(finding.name.removeprefix("grad:")), [])
    return {name: "; ".join(those) for name, those in found.items()}


def digits(shown: str, value: float) -> Cell:
    """A number in short, with all its digits."""
    return Cell(shown, title=repr(value))


def _columns(reading: Reading, findings: Sequence[Finding]) -> Iterator[Column]:
    a, b = reading.labels
    brief_a, brief_b = (a, b) if max(len(a), len(b)) <= _BRIEF else ("a", "b")
    yield Column("#", "ascending", lambda i, _: digits(str(i), i), "number place", now="ascending")
    yield Column("name", "ascending", lambda _, f: Cell(f.name), "name")
    yield _measured("ratio", "ratio", "number ratio")  # what is asked first stands first
    if reading.seeds:
        yield Column(
            "ratio, lowest – highest",
            "descending",
            lambda _, f: _interval(reading.interval(f.name)),
            "number",
            "ratios",
        )
    yield Column(
        "numbers", "descending", lambda _, f: digits(f"{f.elements:,}", f.elements), "number", "numbers"
    )
    yield _measured(f"{a} error", "error_a", "number side", f"{brief_a} error")
    yield _measured(f"{b} error", "error_b", "number side", f"{brief_b} error")
    yield _measured(f"{a} − {b}", "cross", "number side", f"{brief_a} − {brief_b}")
    if all(finding.bound_a == finding.bound_b for finding in findings):
        yield _measured("bound", "bound_a", "number", "bound")
    else:
        yield _measured(f"{a} bound", "bound_a", "number", f"{brief_a} bound")
        yield _measured(f"{b} bound", "bound_b", "number", f"{brief_b} bound")
    yield _in_words("fault", "descending", fault_proof, "proof")
    found = causes(reading, findings)
    if any(found.values()):
        yield _in_words("cause", "descending", lambda f: found[f.name], "cause")
    # The name says both already; here a reader sorts by them.
    yield Column("block", "ascending", lambda _, f: _block(f), "number screen wide")
    yield _in_words("kind", "ascending", lambda f: block_and_row(f.name)[1], "kind screen wide")
    if any(finding.fault for finding in findings):
        yield _in_words("in words", "descending", lambda f: f.fault or "", "words screen")


def _measured(head: str, name: str, class_: str, label: str | None = None) -> Column:
    def cell(_: int, finding: Finding) -> Cell:
        value = getattr(finding, name)
        return digits(measured(finding, value), value)

    return Column(head, "descending", cell, class_, label)


def _in_words(head: str, first: str, of: Callable[[Finding], str], class_: str) -> Column:
    return Column(head, first, lambda _, f: Cell(of(f)), class_)


def _block(finding: Finding) -> Cell:
    block = block_and_row(finding.name)[0]
    return Cell("—", sort="nan") if block is None else Cell(str(block), title=str(block))


def _interval(of: tuple[float, float, float]) -> Cell:
    low, middle, high = of
    title = f"lowest {low!r}\nmedian {middle!r}\nhighest {high!r}"
    return Cell(f"{tiny(low)} – {tiny(high)}", title=title, sort=repr(high))
