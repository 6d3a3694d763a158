"""A comparison on the terminal: within 80 columns, coloured only where it is not piped."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from palm.compare.butterfly import RUNS, Butterfly, spread_steps
from palm.compare.comparison import Comparison, Finding, Outcome
from palm.compare.foreign import ForeignComparison
from palm.compare.repeat import Repeated
from palm.params import parameters

_OUTCOMES: dict[Outcome, tuple[str, str]] = {
    "agree": ("AGREE", "bold green"),
    "differ": ("DIFFER", "bold red"),
    "differ by rounding more than expected": ("ROUNDING", "bold red"),
    "cannot tell": ("CANNOT TELL", "bold yellow"),
}


def print_comparison(found: Repeated, console: Console) -> None:
    """Taps, loss, gradients (the worst of each kind), predictions, and the verdict."""
    comparison = found.shown
    taps = [finding for finding in comparison.findings if finding.kind == "tap"]
    console.print(_table(comparison, "tap", taps))
    console.print(_table(comparison, "gradient (worst)", _worst_gradients(comparison)))
    console.print(_predictions(comparison))
    _print_verdict(found.outcome, found.verdict, console)
    for diagnosis in comparison.diagnoses:
        console.print(Text.assemble(("  why   ", "bold"), diagnosis.sentence))


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
    _print_verdict("agree" if found.agree else "differ", found.verdict, console)


def _print_verdict(outcome: Outcome, verdict: str, console: Console) -> None:
    name, style = _OUTCOMES[outcome]
    console.print(Text.assemble((name, style), "  ", verdict))


def _table(comparison: Comparison, what: str, findings: Iterable[Finding]) -> Table:
    a, b = comparison.label_a, comparison.label_b
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(what, overflow="fold")
    for heading in (f"{a} error", f"{b} error", f"{a}−{b}", "bound", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for finding in findings:
        measured = (finding.error_a, finding.error_b, finding.cross, max(finding.bound_a, finding.bound_b))
        style = "red" if finding.fault else ""
        table.add_row(
            finding.name.removeprefix("grad:"),
            *("—" if math.isnan(value) else f"{value:.1e}" for value in measured),
            f"{finding.ratio:.3g}",
            "✗" if finding.fault else "✓",
            style=style,
        )
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


def _predictions(comparison: Comparison) -> str:
    a, b = comparison.label_a, comparison.label_b
    loss_a, loss_b, exact = comparison.losses
    loss = next(finding for finding in comparison.findings if finding.kind == "loss")
    same = "bit-identical" if comparison.weights_identical else "DIFFERENT"
    return (
        f"\n loss in nats: {a} {loss_a:.9g}, {b} {loss_b:.9g}, referee {exact:.9g} (ratio {loss.ratio:.2g})\n"
        f" predictions: top-1 agreement {comparison.top1_agreement:.2%}, "
        f"KL({a}‖{b}) {comparison.kl_divergence:.1e} nats\n"
        f" weights: {same}\n"
    )
