"""The tables of a report on the terminal: 80 columns hold them, and a pipe gets them unwrapped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from textwrap import wrap
from typing import Any

from rich.table import Table
from rich.text import Text

from palm.files.names import visible
from palm.parity.drift.drift import RUNS, spread_steps
from palm.parity.finding import Finding
from palm.parity.report.reading import Reading
from palm.parity.report.words import NATURES, counted, is_unmeasured, tiny

Columns = dict[str, Callable[[Finding], str]]
# A column of numbers is as wide as 1.2e-34.
_NUMBER = 8
# Of a brief table: faults in a row that are shown one by one, and rows of a kind.
_FAULTS_SHOWN, _ROWS_SHOWN = 3, 12


def heading(words: str) -> str:
    """The heading of a column of numbers, wrapped to their width."""
    return "\n".join(wrap(words, _NUMBER))


def full_table(reading: Reading, what: str, findings: Sequence[Finding], names: tuple[str, str]) -> Table:
    """One row for each finding. `names`: what the headings call the sides."""
    columns = _columns(reading, names)
    table = _table(what, columns)
    for finding in findings:
        _add(table, finding.name.removeprefix("grad:"), columns, finding)
    return table


def brief_table(reading: Reading, names: tuple[str, str]) -> Table:
    """A few rows: neighbours that agree are folded into one with their worst numbers."""
    a, b = names
    columns: Columns = {
        heading(f"{a} error"): lambda finding: _short(finding.error_a, finding),
        heading(f"{b} error"): lambda finding: _short(finding.error_b, finding),
        "ratio": lambda finding: f"{finding.ratio:.3g}",
    }
    table = _table("finding", columns)
    for kind in ("tap", "loss", "gradient"):
        for those in _folded(reading.kind(kind)):
            names_shown = [those[0].name, those[-1].name]
            name = names_shown[0] if len(those) == 1 else " … ".join(names_shown)
            count = f" ({counted(len(those), kind)})" if len(those) > 1 else ""
            worst = max(those, key=lambda finding: (math.isnan(finding.ratio), finding.ratio))
            _add(table, name + count, columns, worst)
    return table


def training_table(training: Mapping[str, Any]) -> Table:
    """A few steps of both trainings and of their control."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for head in ("updates", "torch loss", "jax loss", "loss gap", "control", "weights", "control"):
        table.add_column(head, justify="right", no_wrap=True)
    for k in spread_steps(training["steps"]):
        measured = (training[name][k] for name in ("gap", "control_gap", "distance", "control_distance"))
        table.add_row(
            str(k),
            *(f"{float(training['losses'][run][k]):.7g}" for run in RUNS[:2]),
            *(f"{float(value):.1e}" for value in measured),
        )
    return table


def _folded(findings: Sequence[Finding]) -> Iterator[list[Finding]]:
    """Runs of neighbours that are shown in one row; what is beyond the last row that is shown joins it."""
    rows: list[list[Finding]] = []
    for faulty, run in groupby(findings, key=lambda finding: finding.fault is not None):
        those = list(run)
        single = _FAULTS_SHOWN if faulty else 0
        rows += [[one] for one in those[:single]]
        rows += [those[single:]] if those[single:] else []
    yield from rows[:_ROWS_SHOWN]
    if rows[_ROWS_SHOWN:]:
        yield [finding for row in rows[_ROWS_SHOWN:] for finding in row]


def _table(what: str, columns: Columns) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(what, overflow="fold", vertical="bottom")
    for head in columns:
        table.add_column(Text(head), justify="right", no_wrap=True, vertical="bottom")
    table.add_column("", no_wrap=True)
    return table


def _add(table: Table, name: str, columns: Columns, finding: Finding) -> None:
    table.add_row(
        Text(visible(name)),
        *(column(finding) for column in columns.values()),
        NATURES[finding.nature][0] if finding.fault else "✓",
        style="red" if finding.fault else "",
    )


def _columns(reading: Reading, names: tuple[str, str]) -> Columns:
    """The text of each column of numbers by its heading. 80 columns hold six of them."""
    a, b = names
    columns: Columns = {
        heading(f"{a} error"): lambda finding: _short(finding.error_a, finding),
        heading(f"{b} error"): lambda finding: _short(finding.error_b, finding),
    }
    if not reading.seeds:  # the ratio says the same better, and repeats need the width
        columns[heading(f"{a} − {b}")] = lambda finding: _short(finding.cross, finding)
    if all(finding.bound_a == finding.bound_b for finding in reading.findings):
        columns["bound"] = lambda finding: f"{finding.bound_a:.1e}"
    else:
        columns["share of\nbound"] = _share_of_bound
    columns["ratio"] = lambda finding: f"{finding.ratio:.3g}"
    if reading.seeds:
        columns[f"ratio of\n{len(reading.seeds)} repeats"] = lambda finding: _interval(
            reading.interval(finding.name)
        )
    return columns


def _share_of_bound(finding: Finding) -> str:
    """How much of what rounding explains the worse side uses: 1 is all."""
    shares = (finding.error_a / finding.bound_a, finding.error_b / finding.bound_b)
    return "—" if is_unmeasured(finding, max(shares)) else f"{max(shares):.2g}"


def _short(value: float, finding: Finding) -> str:
    return "—" if is_unmeasured(finding, value) else f"{value:.1e}"


def _interval(of: tuple[float, float, float]) -> str:
    return f"{tiny(of[0])}–{tiny(of[2])}"
