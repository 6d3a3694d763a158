"""The report's tables: every number of every finding, sortable; and what the sides ran in and on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from palm.parity.finding import Finding
from palm.parity.report.markup import breakable, scrolled, table, tag, text
from palm.parity.report.words import block_and_row, fault_proof, measured, tiny
from palm.spec.taps import tap_of

Interval = Sequence[float]
# Measures whose heads name a side.
_OF_SIDES = ("error_a", "error_b", "cross")


@dataclass(frozen=True)
class _Column:
    """A column to sort by: `first` is the order of its first click, `cell` what it has for a finding."""

    head: str
    first: str
    cell: Callable[[int, Finding], str]
    class_: str | None = None
    now: str | None = None

    @property
    def markup(self) -> str:
        """Its head."""
        button = tag("button", text(self.head), type="button")
        return tag("th", button, scope="col", class_=self.class_, aria_sort=self.now, data_first=self.first)


def is_repeated(report: Mapping[str, Any]) -> bool:
    """Whether there are intervals of ratios to show: of one comparison they are points."""
    return len(report.get("repeats", {}).get("seeds", ())) > 1


def findings_table(report: Mapping[str, Any], findings: Sequence[Finding], caption: str) -> str:
    """One row for each finding, in dataflow order."""
    columns = _columns(report, findings)
    body = [
        tag(
            "tr",
            *(column.cell(i, finding) for column in columns),
            class_="faulty" if finding.fault else None,
        )
        for i, finding in enumerate(findings, 1)
    ]
    heads = [column.markup for column in columns]
    return tag("h3", text(caption)) + scrolled(table(heads, body, "sortable"), caption)


def _columns(report: Mapping[str, Any], findings: Sequence[Finding]) -> list[_Column]:
    a, b = (side["label"] for side in report["sides"])
    columns = [
        _Column("#", "ascending", lambda i, _: _digits(str(i), i), "number", now="ascending"),
        _Column("name", "ascending", lambda _, f: tag("th", breakable(f.name), scope="row")),
        _measured("ratio", "ratio"),  # what is asked first stands where a phone shows it
    ]
    if is_repeated(report):
        intervals = report["repeats"]["intervals"]
        columns.append(
            _Column(
                "ratio, lowest – highest",
                "descending",
                lambda _, f: _interval([float(ratio) for ratio in intervals[f.name]]),
                "number",
            )
        )
    columns += [
        _Column("numbers", "descending", lambda _, f: _digits(f"{f.elements:,}", f.elements), "number"),
        _measured(f"{a} error", "error_a"),
        _measured(f"{b} error", "error_b"),
        _measured(f"{a} − {b}", "cross"),
    ]
    if all(finding.bound_a == finding.bound_b for finding in findings):
        columns.append(_measured("bound", "bound_a"))
    else:
        columns += [_measured(f"{a} bound", "bound_a"), _measured(f"{b} bound", "bound_b")]
    columns.append(_in_words("fault", "descending", fault_proof, "proof"))
    causes = _causes(report, findings)
    if any(causes.values()):
        columns.append(_in_words("cause", "descending", lambda f: "; ".join(causes[f.name]), "cause"))
    # The name says both already; here they can be sorted by.
    columns += [
        _Column("block", "ascending", lambda _, f: _block(f), "number screen"),
        _in_words("kind", "ascending", lambda f: block_and_row(f.name)[1], "kind screen"),
    ]
    if any(finding.fault for finding in findings):
        columns.append(_in_words("in words", "descending", lambda f: f.fault or "", "words screen"))
    return columns


def _measured(head: str, name: str) -> _Column:
    def cell(_: int, finding: Finding) -> str:
        value = getattr(finding, name)
        return _digits(measured(finding, value), value)

    return _Column(head, "descending", cell, "number side" if name in _OF_SIDES else "number")


def _in_words(head: str, first: str, of: Callable[[Finding], str], class_: str) -> _Column:
    return _Column(head, first, lambda _, f: tag("td", text(of(f)), class_=class_), class_)


def _digits(shown: str, value: float) -> str:
    """A number's cell, with all its digits in the title."""
    return tag("td", text(shown), title=repr(value), class_="number")


def _block(finding: Finding) -> str:
    block = block_and_row(finding.name)[0]
    if block is None:
        return tag("td", "—", class_="number screen", data_sort="nan")
    return tag("td", str(block), title=block, class_="number screen")


def _interval(of: Interval) -> str:
    low, middle, high = of
    title = f"lowest {low!r}\nmedian {middle!r}\nhighest {high!r}"
    return tag("td", text(f"{tiny(low)} – {tiny(high)}"), title=title, data_sort=high, class_="number")


def _causes(report: Mapping[str, Any], findings: Sequence[Finding]) -> dict[str, list[str]]:
    """What a diagnosis says of each finding: and of a gradient by the tap its weight acts on."""
    told: dict[str, list[str]] = {}
    for one in report["diagnoses"]:
        for tap in one["taps"]:
            told.setdefault(tap, []).append(f"{one['side']}: {one['cause']}")
    causes = {finding.name: list(told.get(finding.name, [])) for finding in findings}
    for finding in findings:
        if finding.kind == "gradient":
            with suppress(KeyError):
                causes[finding.name] += told.get(tap_of(finding.name.removeprefix("grad:")), [])
    return causes


def side_by_side(report: Mapping[str, Any], what: str, sides: Sequence[Mapping[str, Any]]) -> str:
    """Two mappings as a table: first what differs, then, folded up, what is the same."""
    differing: list[str] = []
    same: list[str] = []
    for name in dict.fromkeys(name for side in sides for name in side):
        values = [str(side.get(name, "—")) for side in sides]
        differs = len(set(values)) > 1
        head = tag("th", text(f"≠ {name}" if differs else name), scope="row")
        cells = [tag("td", text(value)) for value in values]
        row = tag("tr", head, *cells, class_="differs" if differs else None)
        (differing if differs else same).append(row)
    labels = [side["label"] for side in report["sides"]]
    heads = [tag("th", text(head), scope="col") for head in (what, *labels)]
    shown = [tag("h3", text(what))]
    if differing:
        shown.append(scrolled(table(heads, differing, "pairs"), f"{what}: what differs"))
    else:
        shown.append(tag("p", text("✓ Nothing differs."), class_="quiet"))
    if same:
        summary = tag("summary", text(f"{len(same)} the same"))
        shown.append(
            tag("details", summary, scrolled(table(heads, same, "pairs"), f"{what}: what is the same"))
        )
    return "".join(shown)


def losses_table(report: Mapping[str, Any], finding: Finding, swatches: Sequence[str]) -> str:
    """Both losses above the referee's, digit under digit."""
    loss = {name: float(value) for name, value in report["loss"].items()}
    a, b = report["sides"]
    rows = [
        (swatches[0] + text(a["label"]), a["dtype"], loss["a"], finding.error_a, finding.bound_a),
        (swatches[1] + text(b["label"]), b["dtype"], loss["b"], finding.error_b, finding.bound_b),
    ]
    body = [
        tag(
            "tr",
            tag("th", label, scope="row"),
            tag("td", text(dtype)),
            tag("td", text(repr(value)), class_="digits"),
            *(_digits(measured(finding, x), x) for x in (error, bound)),
        )
        for label, dtype, value, error, bound in rows
    ]
    if report["referee"]:
        value = tag("td", text(repr(loss["referee"])), class_="digits")
        empty = tag("td", "") * 2
        body.append(tag("tr", tag("th", "referee", scope="row"), tag("td", "float64"), value, empty))
    heads = [tag("th", head, scope="col") for head in ("side", "dtype", "loss in nats")]
    heads += [tag("th", head, scope="col", class_="number") for head in ("relative error", "bound")]
    return scrolled(table(heads, body, "losses"), "Loss")
