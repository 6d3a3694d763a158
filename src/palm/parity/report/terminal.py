"""A report on the terminal and in a pipe: tables, measurements, the verdict, where and why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from palm.files.names import visible
from palm.parity.finding import Finding, Outcome
from palm.parity.report.columns import brief_table, full_table, heading, training_table
from palm.parity.report.places import parameter_rows, places, precision_rows
from palm.parity.report.reading import FOREIGN, PROGRAMS, Reading
from palm.parity.report.training import training_outcome
from palm.parity.report.words import block_and_row, counted, position_text

_OUTCOMES: dict[Outcome, tuple[str, str]] = {
    "agree": ("AGREE", "bold green"),
    "differ": ("DIFFER", "bold red"),
    "differ by rounding more than expected": ("ROUNDING", "bold red"),
    "cannot tell": ("CANNOT TELL", "bold yellow"),
}
# A heading of a column of numbers is at most so many lines high.
_HIGHEST = 3


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Everything a report says, from what `to_dict()` gives or report.json holds.

    Of two sides: taps, gradients (the worst of each kind), losses, predictions, the verdict, where and why,
    and the training. Of a program of which only logits are seen: the measurements and the verdict.
    """
    if report["schema"] in (FOREIGN, PROGRAMS):
        console.print(_beside(_measured_programs(report)))
        console.print()
        _print_verdict(report["outcome"], report["verdict"], console)
        _print_places(report, console)
        return
    reading = Reading.of(report)
    names = _print_names(reading, console)
    console.print(full_table(reading, "tap", reading.kind("tap", "loss"), names))
    console.print()
    console.print(full_table(reading, "gradient (worst)", _worst_gradients(reading), names))
    console.print()
    console.print(_beside(_measured(reading)))
    console.print()
    _print_verdict(reading.outcome, reading.verdict, console)
    console.print(_beside(_where_and_why(reading)))
    if "training" in report:
        console.print()
        print_training(report["training"], console)


def text(report: Mapping[str, Any], *, width: int = 80) -> str:
    """A report in a few dozen lines of at most `width` columns: the verdict, the findings, where and why.

    Findings that agree, and faults after the first three in a row, are folded into one row each.
    """
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        _print_verdict(report["outcome"], report["verdict"], console)
        console.print()
        if report["schema"] in (FOREIGN, PROGRAMS):
            console.print(_beside(_measured_programs(report)))
            _print_places(report, console)
        else:
            reading = Reading.of(report)
            console.print(brief_table(reading, _print_names(reading, console)))
            console.print()
            console.print(_beside([*_measured(reading), *_where_and_why(reading)]))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n")


def print_training(training: Mapping[str, Any], console: Console) -> None:
    """A few steps of both trainings and their control, and the verdict."""
    console.print(training_table(training))
    console.print(
        "\n loss gap in nats; weights: ‖torch − jax‖ / ‖torch‖, of "
        f"{training['followed']:,} of {training['parameters']:,}\n"
        " control: torch against itself, from weights moved by one unit in the last place\n",
        highlight=False,
    )
    _print_verdict(training_outcome(training), training["verdict"], console)


def _print_verdict(outcome: Outcome, verdict: str, console: Console) -> None:
    name, style = _OUTCOMES[outcome]
    console.print(Text.assemble((name, style), "  ", visible(verdict.removeprefix(f"{outcome} "))))


def _print_places(report: Mapping[str, Any], console: Console) -> None:
    """Where two programs part: what differs, then the line of each side."""
    for number, place in enumerate(places(report), 1):
        console.print()
        console.print(Text.assemble((f"{number:3}  ", "bold"), visible(place.headline)))
        for label, where, source in place.sides:
            console.print(Text(f"     {visible(label)}  {visible(where)}"), soft_wrap=True)
            if source:
                console.print(Text(f"         {visible(source)}", style="dim"), soft_wrap=True)


def _print_names(reading: Reading, console: Console) -> tuple[str, str]:
    """What the headings call the sides: their labels, or a and b, explained, if a label is too long."""
    a, b = (visible(label) for label in reading.labels)
    headings = map(heading, (f"{a} error", f"{b} error", f"{a} − {b}"))
    if all(one.count("\n") < _HIGHEST for one in headings):
        return a, b
    for letter, label in (("a", a), ("b", b)):
        console.print(Text.assemble((f"{letter}  ", "bold"), label))
    return "a", "b"


def _beside(rows: Iterable[tuple[str, str]]) -> Group:
    """Words beside the heading of each row. A grid for each: no row is padded to the longest one's width."""
    told = list(rows)
    grids = []
    for head, words in told:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True, style="bold", width=max(len(head) for head, _ in told) + 2)
        grid.add_column(overflow="fold")
        grid.add_row(f"  {head}", Text(visible(words)))
        grids.append(grid)
    return Group(*grids)


def _worst_gradients(reading: Reading) -> list[Finding]:
    """Of the gradients of one kind, the one with a fault if any has, then the largest ratio."""
    worst: dict[tuple[bool, str], Finding] = {}
    for finding in reading.kind("gradient"):
        block, row = block_and_row(finding.name)
        kind = (block is None, row)
        if kind not in worst or _badness(finding) > _badness(worst[kind]):
            worst[kind] = finding
    return list(worst.values())


def _badness(finding: Finding) -> tuple[bool, float]:
    return finding.fault is not None, finding.ratio


def _measured(reading: Reading) -> Iterator[tuple[str, str]]:
    a, b = reading.labels
    report = reading.plain
    loss = {key: float(value) for key, value in report["loss"].items()}
    referee = f", referee {loss['referee']:.9g}" if report["referee"] else ""
    yield "loss", f"{a} {loss['a']:.9g}, {b} {loss['b']:.9g}{referee} nats"
    if not report["referee"]:
        yield "errors", "no referee: the errors of each side are measured against its own float64 program"
    yield from _predictions(report, f"KL({a}‖{b})")
    yield "weights", "the same" if report["weights_identical"] else "DIFFERENT"


def _measured_foreign(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    before, bound = float(report["before"]), report["bound"]
    yield "logits", f"distance {before:.1e} from the referee; {report['dtype']} rounding explains {bound:.1e}"
    yield from _predictions(report, f"KL({report['label']}‖{report.get('other', 'palm')})")
    if report.get("first_position") is not None:
        yield "first apart", position_text(report["first_position"])
    for one in report["likenesses"]:
        yield "like", f"{one['cause']}: {one['detail']} (distance {one['after']:.1e}). {one['fix']}"


def _measured_programs(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was measured of two programs, or of one of which only logits are seen."""
    if report["schema"] == FOREIGN:
        yield from _measured_foreign(report)
        return
    for side in report["sides"]:
        aligned = f"{float(side['aligned']):.1%} of those that lead to an output aligned"
        yield side["label"], f"{side['operations']:,} operations, {aligned}"
    distance, bound = float(report["distance"]), float(report["bound"])
    yield "outputs", f"{distance:.1e} apart in float64, rounding explains {bound:.1e}"
    yield from precision_rows(report)
    yield from parameter_rows(report)


def _predictions(report: Mapping[str, Any], divergence: str) -> Iterator[tuple[str, str]]:
    top1, kl = float(report["top1_agreement"]), float(report["kl_divergence_nats"])
    if math.isfinite(kl):
        yield "predictions", f"top-1 agreement {top1:.2%}, {divergence} {kl:.1e} nats"


def _where_and_why(reading: Reading) -> Iterator[tuple[str, str]]:
    """The first fault and how many there are, what explains them, and which repeats agree."""
    first = reading.first_fault
    if first is not None:
        what = f"{first.kind} of {first.elements:,} numbers" if first.elements > 1 else "a single number"
        yield "where", f"first at {first.name} ({what}); {', '.join(_counts(reading))} in total"
    yield from (("why", diagnosis["sentence"]) for diagnosis in reading.plain["diagnoses"])
    if reading.seeds and len(outcomes := reading.seeds_by_outcome()) > 1:
        yield "seeds", "; ".join(f"{outcome}: {', '.join(those)}" for outcome, those in outcomes.items())
    if reading.outcome != "agree" and reading.plain["predictions"]:
        yield from _apart(reading)


def _counts(reading: Reading) -> Iterator[str]:
    """How many findings of each kind have a fault."""
    for kind in ("tap", "loss", "gradient"):
        those = reading.kind(kind)
        faulty = sum(finding.fault is not None for finding in those)
        if faulty:
            yield f"{faulty} of {counted(len(those), kind)}" if len(those) > 1 else f"the {kind}"


def _apart(reading: Reading) -> Iterator[tuple[str, str]]:
    """Where the predictions differ most, unless the digits that are printed do not show it."""
    place = reading.plain["predictions"][0]
    held = [f"‘{visible(token)}’ {probability:.1%}" for token, probability in (place["a"][0], place["b"][0])]
    if held[0] != held[1]:
        likely = ", ".join(f"{label} {told}" for label, told in zip(reading.labels, held, strict=True))
        place_in_text = f"after ‘{visible(place['context'])}’ the text has ‘{visible(place['target'])}’"
        yield "most apart", f"{place_in_text}; most likely: {likely}"
