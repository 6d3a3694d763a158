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

from palm.compare import svg
from palm.compare.axes import swatch
from palm.compare.comparison import Finding
from palm.compare.markup import breakable, in_words, number, scrolled, short, table, tag, text, tiny
from palm.compare.training_page import training_section

_MEASURES = ("error_a", "error_b", "cross", "ratio", "bound_a", "bound_b")


def write_html(report: Mapping[str, Any], path: Path) -> None:
    """Write `report`, which `Comparison.to_dict()` gave, to `path`. No text in it can become markup."""
    findings = [Finding(**{**entry, **_floats(entry, _MEASURES)}) for entry in report["findings"]]
    taps, losses, gradients = (
        [finding for finding in findings if finding.kind == kind] for kind in ("tap", "loss", "gradient")
    )
    a, b = labels = _labels(report)
    template = files("palm.compare").joinpath("report.template.html").read_text(encoding="utf-8")
    page = Template(template).substitute(
        script_hash=_script_hash(template),
        title=text(f"{a} and {b} {'agree' if report['agree'] else 'differ'} · palm compare"),
        badge=_badge(report["agree"]),
        verdict=text(report["verdict"]),
        diagnoses="".join(
            tag("p", tag("strong", "Why") + text(f" {one['sentence']}"), class_="why")
            for one in report["diagnoses"]
        ),
        losses=_losses(report, losses[0]),
        facts=_facts(report, findings),
        bar=f"{report['ratio_bar']:g}",
        legend=_legend(*labels),
        error_plot=svg.error_plot(taps, *labels, report["first_divergence"]),
        heat_legend=_heat_legend(report["ratio_bar"]),
        tap_strip=_strip(report, taps + losses, "taps"),
        gradient_strip=_strip(report, gradients, "gradients"),
        training=training_section(report["training"], *labels) if "training" in report else "",
        tap_table=_findings_table(taps + losses, *labels, "Taps and loss"),
        gradient_table=_findings_table(gradients, *labels, "Gradients"),
        environment=_side_by_side(report, "Environment", [side["environment"] for side in report["sides"]]),
        config=_side_by_side(
            report,
            "Config",
            [
                {"dtype": side["dtype"], **side["config"], "weights sha256": side["weights_sha256"]}
                for side in report["sides"]
            ],
        ),
    )
    path.write_text(page, encoding="utf-8", newline="\n")


def _floats(entry: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    """What JSON cannot hold is text in a report; float reads both."""
    return {name: float(entry[name]) for name in names}


def _script_hash(template: str) -> str:
    """Of the one script that the page's content security policy lets run."""
    script = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)[0]
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _badge(agree: bool) -> str:
    return tag("span", "✓ agree" if agree else "✕ differ", class_="badge agree" if agree else "badge differ")


def _losses(report: Mapping[str, Any], finding: Finding) -> str:
    """Both losses above the referee's, digit under digit."""
    loss = _floats(report["loss"], ("a", "b", "referee"))
    a, b = report["sides"]
    rows = [
        (swatch("a") + text(a["label"]), a["dtype"], loss["a"], finding.error_a, finding.bound_a),
        (swatch("b") + text(b["label"]), b["dtype"], loss["b"], finding.error_b, finding.bound_b),
        ("referee", "float64", loss["referee"], None, None),
    ]
    body = [
        tag(
            "tr",
            tag("th", label, scope="row"),
            tag("td", text(dtype)),
            tag("td", text(repr(value)), class_="digits"),
            *(tag("td", "" if x is None else number(x), class_="number") for x in (error, bound)),
        )
        for label, dtype, value, error, bound in rows
    ]
    heads = [tag("th", head, scope="col") for head in ("side", "dtype", "loss in nats")]
    heads += [tag("th", head, scope="col", class_="number") for head in ("relative error", "bound")]
    return scrolled(table(heads, body, "losses"), "Loss")


def _facts(report: Mapping[str, Any], findings: Sequence[Finding]) -> str:
    worst = max(findings, key=lambda finding: (math.isnan(finding.ratio), finding.ratio))
    loss = next(finding for finding in findings if finding.kind == "loss")
    top1, kl = _floats(report, ("top1_agreement", "kl_divergence_nats")).values()
    a, b = map(text, _labels(report))
    facts = [
        ("First divergence", text(report["first_divergence"] or "none")),
        ("Largest ratio", f"{number(worst.ratio)} at {text(worst.name)}"),
        ("Ratio of the losses", number(loss.ratio)),
        ("Top-1 agreement", tag("span", f"{top1:.2%}", title=repr(top1))),
        (f"KL({a}‖{b})", f"{number(kl)} nats"),
        ("Weights", "identical" if report["weights_identical"] else "✕ different"),
        ("Tokens", text(" × ".join(str(n) for n in report["tokens_shape"]))),
    ]
    return "".join(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts)


def _legend(a: str, b: str) -> str:
    entries = {
        "a": f"{a} against the referee",
        "b": f"{b} against the referee",
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
        for block, row in [svg.block_and_row(finding)]
        if block is None
    ]
    strip = svg.heat_strip(findings, *labels, bar, first, what)
    beside = tag("ul", *chips, class_="chips", aria_label=f"Ratios of {what} outside the blocks")
    return tag("div", strip, beside, class_="heat")


def _findings_table(findings: Sequence[Finding], a: str, b: str, caption: str) -> str:
    columns = {"error_a": f"{a} error", "error_b": f"{b} error", "cross": f"{a} − {b}", "ratio": "ratio"}
    if all(finding.bound_a == finding.bound_b for finding in findings):
        columns["bound_a"] = "bound"
    else:
        columns |= {"bound_a": f"{a} bound", "bound_b": f"{b} bound"}
    heads = [_sortable("#", "ascending", "number", "ascending"), _sortable("name", "ascending")]
    heads += [_sortable(name, "descending", "number") for name in columns.values()]
    heads.append(_sortable("fault", "descending"))
    body = [
        tag(
            "tr",
            tag("td", str(i), title=i, class_="number"),
            tag("th", breakable(finding.name), scope="row"),
            *(
                tag("td", text(short(value)), title=repr(value), class_="number")
                for value in (getattr(finding, column) for column in columns)
            ),
            tag("td", text(f"✕ {finding.fault}" if finding.fault else "✓"), class_="words"),
            class_="faulty" if finding.fault else None,
        )
        for i, finding in enumerate(findings, 1)
    ]
    return tag("h3", text(caption)) + scrolled(table(heads, body, "sortable"), caption)


def _sortable(name: str, first: str, class_: str | None = None, now: str | None = None) -> str:
    """A column's head; `first` is the order of its first click."""
    button = tag("button", text(name), type="button")
    return tag("th", button, scope="col", class_=class_, aria_sort=now, data_first=first)


def _side_by_side(report: Mapping[str, Any], what: str, sides: Sequence[Mapping[str, Any]]) -> str:
    """Two mappings as a table; rows in which they differ are marked."""
    body = []
    for name in dict.fromkeys(name for side in sides for name in side):
        values = [str(side.get(name, "—")) for side in sides]
        differs = len(set(values)) > 1
        head = tag("th", text(f"≠ {name}" if differs else name), scope="row")
        cells = [tag("td", text(value)) for value in values]
        body.append(tag("tr", head, *cells, class_="differs" if differs else None))
    heads = [tag("th", text(head), scope="col") for head in (what, *_labels(report))]
    return scrolled(table(heads, body, "pairs"), what)


def _labels(report: Mapping[str, Any]) -> tuple[str, str]:
    a, b = report["sides"]
    return a["label"], b["label"]
