"""What speed.py shows of its results: tables on the terminal and in docs/performance.md.

All of it is formed from the raw times in the results files, so that no page can say what no run measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from typing import Any, NamedTuple

from bars import bars
from limits import KINDS, best
from measures import Group, over, rates, share_of_limit, utilisation, values
from timing import Spread, spread

TITLES = {
    "limits": "The machine's limits",
    "training": "Training step",
    "forward": "Forward pass",
    "prefill": "Taking in a prompt",
    "decode": "One more token",
    "memory": "Memory",
    "compile": "Compiling",
    "sizes": "Training step, larger models",
}
MARKED = re.compile(r"(<!-- begin: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_SECONDS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
_BYTES = (("GiB", 2.0**30), ("MiB", 2.0**20))
_FLOPS = (("TFLOP/s", 1e12), ("GFLOP/s", 1e9))
_BYTES_A_SECOND = (("GB/s", 1e9),)


class Row(NamedTuple):
    """A side as it is shown, its numbers in words; `note` says why there are none.

    `times` is how often its value holds that of the side `against`; `first` is its first run.
    """

    name: str
    note: str = ""
    median: str = ""
    quartiles: str = ""
    share: str = ""
    times: str = ""
    against: str = ""
    first: str = ""


def rows(group: Group) -> list[Row]:
    """The sides of a comparison; its limits are apart."""
    return [_row(group, name) for name, side in group["sides"].items() if side["spec"]["model"] != "limits"]


def terminal_table(group: Group) -> str:
    """A comparison within 80 columns. Sides are lettered, and held against a letter."""
    shown = rows(group)
    letters = dict(zip((row.name for row in shown), ascii_lowercase, strict=False))
    lines = [f"{TITLES[group['case']]}: {group['name']}"]
    if shown:
        lines.append(f"{'':29} {'median':>8} {'quartiles':>12} {'share':>5} {'times':>20}")
    for row in shown:
        name = f"{letters[row.name]} {row.name}"
        if row.note:
            lines += [name, f"    {row.note}"[:80]]
            continue
        times = f"{letters[row.against]} × {row.times}" if row.against else ""
        line = f"{name:<29} {row.median:>8} {row.quartiles:>12} {row.share:>5} {times:>20}"
        lines.append(line.rstrip())
    return "\n".join([*lines, *_limits(group)])


def bar_table(groups: Sequence[Group]) -> str:
    """Every bar, within 80 columns."""
    lines = []
    for bar in bars(groups):
        measured = _number(bar.measured.median) if bar.measured else "-"
        lines.append(f"{bar.what:<53} {bar.sign} {_number(bar.asked):<4} {measured:>5}  {bar.verdict}")
    return "\n".join([f"{'bar':<53} asked   measured", *lines])


def render(page: str, results: Sequence[Mapping[str, Any]]) -> str:
    """A page with what stands between `<!-- begin: CASE -->` and `<!-- end -->` formed anew.

    CASE is one of speed.py's, or `bars`; every machine's results follow one another.
    """

    def formed(found: re.Match[str]) -> str:
        parts = [_machine_markdown(found[2], result) for result in results]
        body = "\n".join(filter(None, parts)).rstrip() or "Not measured yet."
        return f"{found[1]}\n{body}\n\n{found[3]}"

    return MARKED.sub(formed, page)


def groups_of(result: Mapping[str, Any]) -> list[Group]:
    """Every comparison of a results file."""
    return [group for case in result["cases"].values() for group in case["groups"]]


def _machine_markdown(case: str, result: Mapping[str, Any]) -> str:
    if case == "bars":
        return f"**{result['machine']}**\n\n{_bars_markdown(groups_of(result))}\n"
    if case not in result["cases"]:
        return ""
    tables = (_group_markdown(group) for group in result["cases"][case]["groups"])
    return f"**{result['machine']}**\n\n" + "".join(f"{table}\n" for table in tables)


def _group_markdown(group: Group) -> str:
    lines = [f"{TITLES[group['case']]}, {group['name']}:", ""]
    shown = rows(group)
    columns = {
        "side": [row.name for row in shown],
        "median": [row.note or row.median for row in shown],
        "quartiles": [row.quartiles for row in shown],
        "of the limit": [row.share for row in shown],
        "times": [f"{row.times} × {row.against}" if row.against else "" for row in shown],
        "first run": [row.first for row in shown],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    if shown:
        lines += _table_head(*columns)
        lines += [f"| {' | '.join(cells)} |" for cells in zip(*columns.values(), strict=True)]
    limits = [f"{line.strip()}." for line in _limits(group)]
    return "\n".join([*lines, *([""] if shown and limits else []), "  \n".join(limits)]) + "\n"


def _bars_markdown(groups: Sequence[Group]) -> str:
    lines = _table_head("bar", "asked", "measured", "quartiles", "")
    for bar in bars(groups):
        found = bar.measured
        measured = (
            (_number(found.median), f"{_number(found.low)}–{_number(found.high)}") if found else ("", "")
        )
        lines.append(
            f"| {bar.what} | {bar.sign} {_number(bar.asked)} | {' | '.join(measured)} | {bar.verdict} |"
        )
    return "\n".join(lines) + "\n"


def _table_head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def _row(group: Group, name: str) -> Row:
    side, measured = group["sides"][name], values(group, name)
    if not measured:
        return Row(
            name, f"left out: {side['left_out']}" if "left_out" in side else side.get("failed", "no run")
        )
    is_memory = group["case"] == "memory"
    median, quartiles = _in_words(spread(measured), _BYTES if is_memory else _SECONDS)
    part = utilisation(group, name) if group["case"] == "sizes" else share_of_limit(group, name)
    against = side["spec"].get("against")
    times = over(group, name, against) if against in group["sides"] else None
    first = side["start"]["first"]["seconds"]
    return Row(
        name=name,
        median=median,
        quartiles="" if is_memory else quartiles,
        share=f"{part.median:.0%}" if part else "",
        times=f"{times.median:.2f}" + ("" if is_memory else f" ({times.low:.2f}–{times.high:.2f})")
        if times
        else "",
        against=against if times else "",
        first="" if is_memory else _in_words(Spread(first, first, first), _SECONDS)[0],
    )


def _limits(group: Group) -> list[str]:
    """The rates that are the limit of their kind; in the case of that name, all that were measured."""
    found, lines = rates(group), []
    for kind in KINDS:
        limit = best(found, kind)
        for call in (call for call in found if call.startswith(f"{kind}: ")):
            median, quartiles = _in_words(
                spread(found[call]), _BYTES_A_SECOND if kind == "bandwidth" else _FLOPS
            )
            is_limit = limit is not None and call == limit[0]
            if is_limit or group["case"] == "limits":
                lines.append(f"{'limit' if is_limit else '':<5} {call}: {median} ({quartiles})")
    return lines


def _in_words(found: Spread, units: Sequence[tuple[str, float]]) -> tuple[str, str]:
    """The median with the largest unit of which it has one, or the last; and the quartiles in that unit."""
    unit, size = next((pair for pair in units if found.median >= pair[1]), units[-1])
    low, median, high = (_number(value / size) for value in found)
    return f"{median} {unit}", f"{low}–{high}"


def _number(value: float) -> str:
    """Three digits."""
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
