"""A comparison as one HTML file: everything is inside, and it works from disk and on paper."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from palm.parity.finding import Finding, Outcome
from palm.parity.report import plots as svg
from palm.parity.report.axes import swatch
from palm.parity.report.markup import breakable, number, tag, text
from palm.parity.report.predictions import predictions_section
from palm.parity.report.tables import findings_table, is_repeated, losses_table, side_by_side
from palm.parity.report.training import training_section
from palm.parity.report.words import OUTCOMES, block_and_row, in_words, tiny

_MEASURES = ("error_a", "error_b", "cross", "ratio", "bound_a", "bound_b")
_READING = {
    True: "The <b>referee</b> is the specification in float64 NumPy; a side's <b>error</b> is its distance "
    "from that, relative to the rms of the referee's value.",
    False: "No <b>referee</b> judged these excerpts: a side's <b>error</b> is its distance from its own "
    "program in float64. Where that is not known (—), as of gradients, the bound stands for its rounding.",
}
_JUDGE = {True: "the float64 referee", False: "its own program in float64"}


def write_html(report: Mapping[str, Any], path: Path) -> None:
    """Write `page(report)` to `path`."""
    path.write_text(page(report), encoding="utf-8", newline="\n")


def page(report: Mapping[str, Any]) -> str:
    """`report`, which `to_dict()` gives and report.json holds, as one HTML file. No text in it can become
    markup."""
    findings = [Finding(**{**entry, **_floats(entry, _MEASURES)}) for entry in report["findings"]]
    taps, losses, gradients = (
        [finding for finding in findings if finding.kind == kind] for kind in ("tap", "loss", "gradient")
    )
    a, b = labels = _labels(report)
    template = files("palm.parity.report").joinpath("templates/report.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        script_hash=_script_hash(template),
        title=text(f"{a} and {b}: {report['outcome']} · palm compare"),
        badge=_badge(report["outcome"]),
        verdict=text(report["verdict"]),
        reasons=_reasons(report),
        reading=_READING[report["referee"]],
        losses=losses_table(report, losses[0], [swatch("a"), swatch("b")]),
        facts=_facts(report, findings),
        bar=f"{report['ratio_bar']:g}",
        judge=_JUDGE[report["referee"]],
        legend=_legend(*labels, "the referee" if report["referee"] else "its own float64"),
        error_plot=svg.error_plot(taps, *labels, report["first_divergence"]),
        heat_legend=_heat_legend(report["ratio_bar"]),
        tap_strip=_strip(report, taps + losses, "taps"),
        gradient_strip=_strip(report, gradients, "gradients"),
        predictions=predictions_section(report),
        training=training_section(report["training"], *labels) if "training" in report else "",
        tap_table=findings_table(report, taps + losses, "Taps and loss"),
        gradient_table=findings_table(report, gradients, "Gradients"),
        run=_run(report),
        environment=side_by_side(report, "Environment", [side["environment"] for side in report["sides"]]),
        config=side_by_side(
            report,
            "Config",
            [
                {"dtype": side["dtype"], **side["config"], "weights sha256": side["weights_sha256"]}
                for side in report["sides"]
            ],
        ),
    )


def _floats(entry: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    """What JSON cannot hold is text in a report; float reads both."""
    return {name: float(entry[name]) for name in names}


def _script_hash(template: str) -> str:
    """Of the one script that the page's content security policy lets run."""
    script = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)[0]
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _badge(outcome: Outcome) -> str:
    sign, class_ = OUTCOMES[outcome]
    return tag("span", text(f"{sign} {outcome}"), class_=f"badge {class_}")


def _reasons(report: Mapping[str, Any]) -> str:
    """Why the sides differ, why it may not be told, and what the repeats add."""
    told = [("Why", one["sentence"]) for one in report["diagnoses"]]
    told += [("Doubt", f"{doubt}.") for doubt in report["doubts"]]
    if is_repeated(report):
        told.append(("Repeats", _repeats(report["repeats"])))
    return "".join(tag("p", tag("strong", head) + text(f" {what}"), class_="why") for head, what in told)


def _repeats(repeats: Mapping[str, Any]) -> str:
    seeds: dict[str, list[str]] = {}
    for seed, outcome in zip(repeats["seeds"], repeats["outcomes"], strict=True):
        seeds.setdefault(outcome, []).append(str(seed))
    of = "; ".join(
        f"{outcome} with seed{'s' * (len(those) > 1)} {', '.join(those)}" for outcome, those in seeds.items()
    )
    return (
        f"{of}. Each had another text, and other weights unless a checkpoint gives them. From the lowest to "
        "the highest ratio of all "
        f"{len(repeats['seeds'])} is an interval that holds the median of all there could be with "
        f"probability {repeats['confidence']:.4g}. Everything else here is of the first with the gravest "
        "outcome."
    )


def _run(report: Mapping[str, Any]) -> str:
    """What was asked of `palm compare`, if it was that command."""
    told = ", ".join(f"{name} {value}" for name, value in report.get("run", {}).items())
    return tag("p", text(f"Run: {told}"), class_="quiet") if told else ""


def _facts(report: Mapping[str, Any], findings: Sequence[Finding]) -> str:
    worst = max(findings, key=lambda finding: (math.isnan(finding.ratio), finding.ratio))
    loss = next(finding for finding in findings if finding.kind == "loss")
    top1, kl = _floats(report, ("top1_agreement", "kl_divergence_nats")).values()
    a, b = map(text, _labels(report))
    facts = [
        ("First divergence", breakable(report["first_divergence"] or "none")),
        ("Largest ratio", f"{number(worst.ratio)} at {breakable(worst.name)}"),
        ("Ratio of the losses", number(loss.ratio)),
        ("Top-1 agreement", "—" if math.isnan(top1) else tag("span", f"{top1:.2%}", title=repr(top1))),
        (f"KL({a}‖{b})", "—" if math.isnan(kl) else f"{number(kl)} nats"),
        ("Weights", "identical" if report["weights_identical"] else "✕ different"),
        ("Tokens", text(" × ".join(str(n) for n in report["tokens_shape"]))),
    ]
    return "".join(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts)


def _legend(a: str, b: str, judge: str) -> str:
    entries = {
        "a": f"{a} against {judge}",
        "b": f"{b} against {judge}",
        "cross": f"{a} against {b}",
        "band": "what rounding explains",
        "fault": "more than rounding",
    }
    return "".join(tag("li", swatch(kind) + text(what)) for kind, what in entries.items())


def _heat_legend(bar: float) -> str:
    names = ["0", *(f"≤ {edge:g}" for edge in svg.heat_edges(bar)[1:]), "more"]
    items = [tag("li", text(name), class_=f"chip h{i}") for i, name in enumerate(names)]
    items.insert(4, tag("li", f"bar {bar:g}", class_="bar"))
    items.append(tag("li", "nan", class_="chip h-nan"))
    outlines = (("first", "first divergence"), ("outside", "fault below the bar"))
    return "".join(items) + "".join(tag("li", text(n), class_=f"chip h0 {c}") for c, n in outlines)


def _strip(report: Mapping[str, Any], findings: Sequence[Finding], what: str) -> str:
    """The heat strip of what is in blocks, and beside it cells for what is not."""
    labels = _labels(report)
    bar, first = report["ratio_bar"], report["first_divergence"]
    chips = [
        tag(
            "li",
            tag("span", text(row)),
            tag("b", text(tiny(finding.ratio))),
            class_=f"chip hit {svg.heat_class(finding, bar, first)}",
            title=in_words(finding, *labels),
        )
        for finding in findings
        for block, row in [block_and_row(finding.name)]
        if block is None
    ]
    strip = svg.heat_strip(findings, *labels, bar, first, what)
    beside = tag("ul", *chips, class_="chips", aria_label=f"Ratios of {what} outside the blocks")
    return tag("div", strip, beside, class_="heat")


def _labels(report: Mapping[str, Any]) -> tuple[str, str]:
    a, b = report["sides"]
    return a["label"], b["label"]
