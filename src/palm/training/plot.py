"""The plot of a run, RUN/loss.png, and of several: `palm plot`."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from palm.files.markup import tag
from palm.files.names import visible
from palm.files.write import replace_file
from palm.training.curves import Axis, Curve, covered, running_mean
from palm.training.run_folder import PLOT, Run
from palm.training.runs import table

# Told apart by those who do not see all colours, and dark enough on white.
_COLOURS = ("#1764ab", "#d9480f", "#2b8a3e", "#862e9c", "#b8860b", "#0b7285", "#c2255c", "#495057")
_DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)))
_STYLE = """
:root { color-scheme: light; }
body { background: #fff; color: #212529; font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 72rem; padding: 0 1rem; }
svg { height: auto; max-width: 100%; }
div { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { border-bottom: 1px solid #dee2e6; padding: .25rem .75rem; text-align: left; white-space: nowrap; }
"""


def plot_run(run: Run) -> Path:
    """Draw the loss of each step, its mean over the last 5 % of steps, and the validation loss; in nats.

    Raises `RunError` if it cannot be written.
    """
    entries = run.entries()
    steps = [entry["step"] for entry in entries]
    losses = np.array([entry["loss"] for entry in entries], np.float64)
    measured = [(entry["step"], entry["val_loss"]) for entry in entries if "val_loss" in entry]
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="#9ec5e8", linewidth=0.8, label="each batch")
    axes.plot(steps, running_mean(losses), color=_COLOURS[0], linewidth=1.6, label="running mean")
    if measured:
        axes.plot(
            *zip(*measured, strict=True), color=_COLOURS[1], marker="o", markersize=3, label="validation"
        )
    _finish(axes, run.path.resolve().name, "step")
    if entries:
        axes.legend(frameon=False)
    with run.writing():
        replace_file(run.path / PLOT, _saved(figure, "png"))
    return run.path / PLOT


def plot_runs(curves: Sequence[Curve], title: str, axis: Axis, kind: str) -> bytes:
    """The losses of several runs over steps or tokens, as the bytes of a `kind`: png, svg or html.

    Lines: running means of the training loss. Points: the validation loss. Of several runs in a line their
    means, and a band and bars from the lowest to the highest. An SVG and an HTML file load nothing.
    """
    figure = Figure(figsize=(9, 5.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    styles = itertools.cycle(itertools.product(_DASHES, _COLOURS))
    above = covered(curves)
    lines = [_draw(axes, *row) for row in zip(curves, above, styles, strict=False)]
    _finish(axes, title, axis)
    legend = figure.legend(
        lines, [""] * len(lines), loc="outside lower center", ncols=_columns(curves), frameon=False
    )
    for text, curve in zip(legend.get_texts(), curves, strict=True):
        text.set_parse_math(False)
        text.set_text(_brief(visible(curve.label)))
    if kind != "html":
        return _saved(figure, kind)
    return _page(curves, title, _saved(figure, "svg").decode()).encode()


def describe(curves: Sequence[Curve]) -> str:
    """What the lines, the points and the bands are, in words."""
    told = "Lines: training loss, as a running mean over 5 % of the steps. Points: validation loss."
    if any(covered(curves)):
        told += " Where lines coincide, the lower one is wider."
    if any(len(curve.runs) > 1 for curve in curves):
        told += " Of several runs: their mean, and a band and bars from the lowest to the highest."
    return told


def _draw(axes: Axes, curve: Curve, above: int, style: tuple[Any, str]) -> Line2D:
    """Draw a line, its points, and from the lowest to the highest of several runs a band and bars.

    `above` lines coincide with it and come later: it is wider, so that it shows on both sides of them.
    """
    (dashes, colour), wider = style, 2.4 * min(above, 5)
    training, validation = curve.training, curve.validation
    if len(curve.runs) > 1:
        axes.fill_between(training.x, training.low, training.high, color=colour, alpha=0.18, linewidth=0)
        axes.vlines(validation.x, validation.low, validation.high, color=colour, linewidth=1)
    axes.plot(validation.x, validation.mean, color=colour, linewidth=0, marker="o", markersize=3.5 + wider)
    width = 1.6 + wider
    [line] = axes.plot(training.x, training.mean, color=colour, linewidth=width, linestyle=dashes)
    return line


def _columns(curves: Sequence[Curve]) -> int:
    return max(1, min(4, 110 // (8 + max(len(_brief(curve.label)) for curve in curves))))


def _brief(label: str) -> str:
    return label if len(label) <= 60 else f"{label[:29]} … {label[-28:]}"


def _finish(axes: Axes, title: str, axis: Axis) -> None:
    axes.set(xlabel=axis, ylabel="loss (nats per token)")
    axes.set_title(visible(title), parse_math=False)
    axes.grid(alpha=0.3)


def _saved(figure: Figure, kind: str) -> bytes:
    """The bytes of a PNG or an SVG: the same for the same figure, and with text as text."""
    # No pyplot: it would look for a display, and keep every figure until the process ends.
    drawn = io.BytesIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type")) if kind == "svg" else None
    with warnings.catch_warnings(), rc_context({"svg.fonttype": "none", "svg.hashsalt": "palm"}):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(drawn, format=kind, metadata=metadata)
    return drawn.getvalue()


def _page(curves: Sequence[Curve], title: str, svg: str) -> str:
    """One HTML file that loads nothing."""
    head, rows = table([run for curve in curves for run in curve.runs])
    labels = [curve.label for curve in curves for _ in curve.runs]
    cells = [
        tag("tr", *(tag("td", value) for value in (label, *row)))
        for label, row in zip(labels, rows, strict=True)
    ]
    body = tag(
        "body",
        tag("h1", title),
        Markup(svg[svg.index("<svg") :]),
        tag("p", describe(curves)),
        tag("div", tag("table", tag("tr", *(tag("th", name) for name in ("line", *head))), *cells)),
    )
    meta = Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width">')
    page = tag("html", tag("head", meta, tag("title", title), tag("style", Markup(_STYLE))), body, lang="en")
    return f"<!doctype html>\n{page}\n"
