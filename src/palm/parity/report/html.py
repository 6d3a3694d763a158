"""A report as HTML: one file with everything inside, for screen, phone and paper; or a piece of a notebook.

The templates escape everything that comes from a report, and make hidden characters visible.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined
from markupsafe import Markup, escape

from palm.files.markup import shown, tag
from palm.files.names import escaped
from palm.parity.finding import Finding
from palm.parity.report import plots, words
from palm.parity.report.axes import swatch
from palm.parity.report.distances import distance_plot, distances
from palm.parity.report.places import parameter_rows, places, precision_rows
from palm.parity.report.precision_plot import precision_plot
from palm.parity.report.reading import FOREIGN, PROGRAMS, Reading
from palm.parity.report.tables import Pairs, causes, findings_table
from palm.parity.report.training import training_figures, training_outcome, training_rows

# Findings in the table of a notebook's fragment.
_NOTABLE = 8


def page(report: Mapping[str, Any]) -> str:
    """A report, as `to_dict()` gives it or report.json holds it, as one HTML file.

    Three schemas are known: "palm-compare", with repeats and training if they are there,
    "palm-compare-foreign" and "palm-compare-programs". No text in a report can become markup.
    """
    name, values = _values(report)
    return _templates().get_template(f"{name}.html").render(values)


def fragment(report: Mapping[str, Any]) -> str:
    """The verdict, the findings that matter and the plot, for a notebook: no script, styles of its own."""
    name, values = _values(report)
    return _templates().get_template(f"{name}_fragment.html").render(values)


def _values(report: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The template of a report, and what it shows."""
    if report["schema"] == PROGRAMS:
        return "programs", {
            "report": report,
            "places": list(places(report)),
            "measured": [*precision_rows(report), *parameter_rows(report)],
            "plot": precision_plot(report),
        }
    if report["schema"] == FOREIGN:
        plot, rows = distance_plot(report), distances(report)
        other = report.get("other", "palm")  # which version 0.1.0 does not tell
        common = {"report": report, "other": other, "places": list(places(report))}
        return "foreign", {**common, "plot": plot, "distances": rows}
    reading = Reading.of(report)
    taps, loss, gradients = (reading.kind(kind) for kind in ("tap", "loss", "gradient"))
    return "comparison", {
        "report": report,
        "reading": reading,
        "labels": reading.labels,
        "configs": [
            {"dtype": side["dtype"], **side["config"], "weights sha256": side["weights_sha256"]}
            for side in report["sides"]
        ],
        "loss": loss[0],
        "worst": max(reading.findings, key=lambda finding: (math.isnan(finding.ratio), finding.ratio)),
        "error_plot": plots.error_plot(taps, *reading.labels, report["first_divergence"]),
        "heat_names": [*(f"≤ {edge:g}" for edge in plots.heat_edges(report["ratio_bar"])[1:]), "more"],
        "strips": [("Taps", _strip(reading, taps + loss)), ("Gradients", _strip(reading, gradients))],
        "tables": [(taps + loss, "Taps and loss"), (gradients, "Gradients")],
        "notable": _notable(reading.findings),
        "figures": training_figures(report["training"], *reading.labels) if "training" in report else [],
    }


def _strip(reading: Reading, findings: Sequence[Finding]) -> tuple[Markup, list[tuple[str, Finding, str]]]:
    """The ratios of what is in blocks as a plot, and name, finding and class of what is not."""
    bar, first = reading.plain["ratio_bar"], reading.plain["first_divergence"]
    kind = "gradients" if findings[0].kind == "gradient" else "taps"
    outside = [
        (row, finding, plots.heat_class(finding, bar, first))
        for finding in findings
        for block, row in [words.block_and_row(finding.name)]
        if block is None
    ]
    return plots.heat_strip(findings, *reading.labels, bar, first, kind), outside


def _notable(findings: Sequence[Finding]) -> list[Finding]:
    """The first faults; without a fault, the largest ratios."""
    faulty = [finding for finding in findings if finding.fault]
    return faulty[:_NOTABLE] or sorted(findings, key=lambda finding: -finding.ratio)[: _NOTABLE // 2]


@lru_cache(maxsize=1)
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("palm.parity.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Undefined) else shown(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    assert environment.loader is not None
    script = environment.loader.get_source(environment, "script.js")[0]
    environment.globals |= {
        "script": Markup(script),
        "script_hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "words": words,
        "swatch": swatch,
        "tag": tag,
        "pairs": Pairs.of,
        "causes": causes,
        "findings_table": findings_table,
        "training_rows": training_rows,
        "training_outcome": training_outcome,
    }
    environment.filters |= {"number": _number, "breakable": _breakable, "marked": _marked}
    environment.tests |= {"nan": math.isnan}
    return environment


def _number(value: float | str, suffix: str = "") -> Markup:
    """A number in short, with all its digits in the title."""
    return tag("span", words.short(float(value)) + suffix, title=repr(float(value)), class_="number")


def _breakable(name: str) -> Markup:
    """A long dotted name; it may break after a dot."""
    return Markup(str(shown(name)).replace(".", ".<wbr>"))


def _marked(content: str) -> Markup:
    """Text whose hidden characters are visible, and set apart from what looks like them."""
    return Markup("").join(
        escape(c) if c.isprintable() else tag("i", escaped(c), class_="ctl") for c in content
    )
