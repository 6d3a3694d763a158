"""A comparison on the terminal: within 80 columns, coloured only where it is not piped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from textwrap import wrap

from rich.console import Console
from rich.table import Table
from rich.text import Text

from palm.parity.blackbox.compare import ForeignComparison
from palm.parity.drift.drift import RUNS, Butterfly, spread_steps
from palm.parity.finding import Finding, Outcome
from palm.parity.repeats import Repeated
from palm.parity.report.markup import NATURES, escaped, is_unmeasured, tiny
from palm.parity.result import Comparison
from palm.spec.parameters import parameters

_OUTCOMES: dict[Outcome, tuple[str, str]] = {
    "agree": ("AGREE", "bold green"),
    "differ": ("DIFFER", "bold red"),
    "differ by rounding more than expected": ("ROUNDING", "bold red"),
    "cannot tell": ("CANNOT TELL", "bold yellow"),
}
# A column of numbers is as wide as 1.2e-34, and its heading at most so many lines high.
_NUMBER, _HIGHEST = 8, 3


def print_comparison(found: Repeated, console: Console) -> None:
    """Taps, gradients (the worst of each kind), losses, predictions, the verdict, where and why."""
    comparison = found.shown
    names = _short_names(comparison)
    for letter, label in zip(names, (comparison.label_a, comparison.label_b), strict=True):
        if letter != label:
            console.print(Text.assemble((f"{letter}  ", "bold"), label))
    taps = [finding for finding in comparison.findings if finding.kind != "gradient"]
    console.print(_table(found, "tap", taps, names))
    console.print()
    console.print(_table(found, "gradient (worst)", _worst_gradients(comparison), names))
    console.print()
    console.print(_told(_measured(comparison)))
    console.print()
    _print_verdict(found.outcome, found.verdict, console)
    console.print(_told(_where_and_why(found)))


def print_training(found: Butterfly, console: Console) -> None:
    """A few steps of both trainings beside their control, and the verdict."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    headings = ("updates", "torch loss", "jax loss", "loss gap", "control", "weights", "control")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for k in spread_steps(found.steps):
        measured = (found.gap, found.control_gap, found.distance, found.control_distance)
        table.add_row(
            str(k),
            *(f"{found.losses[run][k]:.7g}" for run in RUNS[:2]),
            *(f"{values[k]:.1e}" for values in measured),
        )
    console.print(table)
    console.print(
        "\n loss gap in nats; weights: ‖torch − jax‖ / ‖torch‖, of "
        f"{found.followed:,} of {found.parameters:,}\n"
        " control: torch against itself from weights moved by one unit in the last place\n",
        highlight=False,
    )
    _print_verdict("agree" if found.agree else "differ", found.verdict, console)


def print_foreign(found: ForeignComparison, console: Console) -> None:
    """What is known of a model of which only logits are seen, and the verdict."""
    console.print(
        f" logits: distance {found.before:.1e}, rounding in {found.dtype} allows {found.bound:.1e}\n"
        f" predictions: top-1 agreement {found.top1_agreement:.2%}, "
        f"KL({found.label}‖palm) {found.kl_divergence:.1e} nats\n",
        highlight=False,
        markup=False,
    )
    _print_verdict(found.outcome, found.verdict, console)


def _print_verdict(outcome: Outcome, verdict: str, console: Console) -> None:
    name, style = _OUTCOMES[outcome]
    console.print(Text.assemble((name, style), "  ", verdict.removeprefix(f"{outcome} ")))


def _short_names(comparison: Comparison) -> tuple[str, str]:
    """What the headings call the sides: their labels, or, if these are too long for a heading, a and b."""
    a, b = comparison.label_a, comparison.label_b
    headings = map(_heading, (f"{a} error", f"{b} error", f"{a} − {b}"))
    return (a, b) if all(heading.count("\n") < _HIGHEST for heading in headings) else ("a", "b")


def _heading(words: str) -> str:
    return "\n".join(wrap(words, _NUMBER))


def _table(found: Repeated, what: str, findings: Sequence[Finding], names: tuple[str, str]) -> Table:
    columns = _columns(found, names)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(what, overflow="fold", vertical="bottom")
    for heading in columns:
        table.add_column(Text(heading), justify="right", no_wrap=True, vertical="bottom")
    table.add_column("", no_wrap=True)
    for finding in findings:
        table.add_row(
            finding.name.removeprefix("grad:"),
            *(column(finding) for column in columns.values()),
            NATURES[finding.nature][0] if finding.fault else "✓",
            style="red" if finding.fault else "",
        )
    return table


def _columns(found: Repeated, names: tuple[str, str]) -> dict[str, Callable[[Finding], str]]:
    """What gives the text of each column of numbers, by heading. 80 columns hold six of them."""
    a, b = names
    columns: dict[str, Callable[[Finding], str]] = {
        _heading(f"{a} error"): lambda finding: _short(finding.error_a, finding),
        _heading(f"{b} error"): lambda finding: _short(finding.error_b, finding),
    }
    repeated = len(found.seeds) > 1
    if not repeated:  # the ratio is the same told better, and repeats need the room
        columns[_heading(f"{a} − {b}")] = lambda finding: _short(finding.cross, finding)
    if all(finding.bound_a == finding.bound_b for finding in found.shown.findings):
        columns["bound"] = lambda finding: f"{finding.bound_a:.1e}"
    else:
        columns["share of\nbound"] = _share_of_bound
    columns["ratio"] = lambda finding: f"{finding.ratio:.3g}"
    if repeated:
        columns[f"ratio of\n{len(found.seeds)} repeats"] = lambda finding: _interval(
            found.intervals[finding.name]
        )
    return columns


def _share_of_bound(finding: Finding) -> str:
    """How much of what rounding allows the worse side uses: 1 is all."""
    shares = (finding.error_a / finding.bound_a, finding.error_b / finding.bound_b)
    return "—" if is_unmeasured(finding, max(shares)) else f"{max(shares):.2g}"


def _short(value: float, finding: Finding) -> str:
    return "—" if is_unmeasured(finding, value) else f"{value:.1e}"


def _interval(of: tuple[float, float, float]) -> str:
    return f"{tiny(of[0])}–{tiny(of[2])}"


def _told(rows: Iterable[tuple[str, str]]) -> Table:
    """Words under a heading each, wrapped beside it."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for heading, words in rows:
        table.add_row(f"  {heading}", Text(words))
    return table


def _worst_gradients(comparison: Comparison) -> list[Finding]:
    """Of the gradients of one kind, the one with a fault if any has, then the largest ratio."""
    table = parameters(comparison.recordings[0].config)
    worst: dict[str, Finding] = {}
    for finding in comparison.findings:
        if finding.kind != "gradient":
            continue
        kind = table[finding.name.removeprefix("grad:")].kind
        held = worst.get(kind)
        if held is None or _badness(finding) > _badness(held):
            worst[kind] = finding
    return list(worst.values())


def _badness(finding: Finding) -> tuple[bool, float]:
    return finding.fault is not None, finding.ratio


def _measured(comparison: Comparison) -> Iterator[tuple[str, str]]:
    a, b = comparison.label_a, comparison.label_b
    loss_a, loss_b, exact = comparison.losses
    judge = f", referee {exact:.9g}" if comparison.referee else ""
    yield "loss", f"{a} {loss_a:.9g}, {b} {loss_b:.9g}{judge} nats"
    if not comparison.referee:
        yield "errors", "each side's from its own float64 program: no referee judged"
    if math.isfinite(comparison.kl_divergence):
        top1, kl = comparison.top1_agreement, comparison.kl_divergence
        yield "predictions", f"top-1 agreement {top1:.2%}, KL({a}‖{b}) {kl:.1e} nats"
    yield "weights", "the same" if comparison.weights_identical else "DIFFERENT"


def _where_and_why(found: Repeated) -> Iterator[tuple[str, str]]:
    """The first fault and how many there are, what explains them, what leaves doubt, which repeats agree."""
    comparison = found.shown
    first = next((finding for finding in comparison.findings if finding.fault), None)
    if first is not None:
        what = f"{first.kind} of {first.elements:,} numbers" if first.elements > 1 else "a single number"
        counts = []
        for kind in ("tap", "loss", "gradient"):
            those = [finding for finding in comparison.findings if finding.kind == kind]
            faulty = sum(finding.fault is not None for finding in those)
            several = f"{faulty} of {len(those)} {kind}s"
            counts += [several if len(those) > 1 else f"the {kind}"] if faulty else []
        yield "where", f"{first.name} ({what}) first; {', '.join(counts)} in all"
    yield from (("why", diagnosis.sentence) for diagnosis in comparison.diagnoses)
    if len(set(found.outcomes)) > 1:
        seeds: dict[str, list[str]] = {}
        for seed, outcome in zip(found.seeds, found.outcomes, strict=True):
            seeds.setdefault(outcome, []).append(str(seed))
        yield "seeds", "; ".join(f"{outcome}: {', '.join(those)}" for outcome, those in seeds.items())
    if comparison.outcome != "agree" and comparison.predictions:
        yield "most apart", _apart(comparison)


def _apart(comparison: Comparison) -> str:
    place = comparison.predictions[0]
    sides = zip((comparison.label_a, comparison.label_b), (place.a[0], place.b[0]), strict=True)
    held = ", ".join(f"{label} {_quoted(token)} {probability:.1%}" for label, (token, probability) in sides)
    return f"after {_quoted(place.context)} came {_quoted(place.target)}; likeliest: {held}"


def _quoted(content: str) -> str:
    """Text of a model or a file: what a terminal would obey is escaped."""
    return "‘" + "".join(c if c.isprintable() else escaped(c) for c in content) + "’"
