"""The report's section on training: three plots over the steps, and a table of a few of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from palm.parity.drift.drift import spread_steps
from palm.parity.report.axes import (
    Axis,
    LinearAxis,
    LogAxis,
    area,
    curve,
    framed,
    labels,
    line,
    stretched,
    stride,
    swatch,
    words,
)
from palm.parity.report.markup import number, scrolled, table, tag, text

# Heights inside a plot, from the top: what is not finite, the range, zero, the floor over the steps' numbers.
_TOP, _BOTTOM, _FLOOR, _HEIGHT = 24, 184, 210, 244
# Steps that a plot can show one by one, whose dots can be told apart, that have room for a number each, and
# that an axis can name.
_MOST_DRAWN, _MOST_DOTS, _MOST_CENTRED, _MOST_LABELS = 200, 100, 15, 7


@dataclass(frozen=True)
class _Curve:
    """One value for each step, and how it is drawn: `kind` is a class of the template."""

    kind: str
    name: str
    values: Sequence[float]


def training_section(training: Mapping[str, Any], a: str, b: str) -> str:
    """The section, from what `Butterfly.to_dict()` gave."""
    series = {
        name: [float(value) for value in training[name]]
        for name in ("gap", "control_gap", "distance", "control_distance")
    }
    losses = {run: [float(value) for value in values] for run, values in training["losses"].items()}
    cross, control, bar = f"{a} against {b}", f"{a} against its control", float(training["bar"])
    explained = [bar * distance for distance in series["control_distance"]]
    plots = (
        (
            "Loss of each batch before it is learnt from, in nats",
            LinearAxis,
            [("a", a, losses["torch"]), ("b", b, losses["jax"])],
        ),
        (
            "Gap of the losses, in nats; logarithmic",
            LogAxis,
            [("cross", cross, series["gap"]), ("control", control, series["control_gap"])],
        ),
        (
            "Distance of the weights, relative to their size; logarithmic",
            LogAxis,
            [
                ("band", f"up to {bar:g} times the control: what rounding explains", explained),
                ("cross", cross, series["distance"]),
                ("control", control, series["control_distance"]),
            ],
        ),
    )
    steps = training["steps"]
    quiet = (
        f"{a} and {b} learn from the same batches, from the same weights. The control is {a} once more, from "
        "weights of which each is moved by one unit in the last place: how far it departs is what rounding "
        f"alone can do. {training['followed']:,} of {training['parameters']:,} weights are followed."
    )
    return tag(
        "section",
        tag("h2", text(f"Training, {steps} step{'s' * (steps > 1)}")),
        tag("p", text(f"{'✓' if training['agree'] else '✕'} {training['verdict']}")),
        tag("p", text(quiet), class_="quiet"),
        *(_figure(caption, kind, [_Curve(*drawn) for drawn in curves]) for caption, kind, curves in plots),
        _table(series, losses, a, b),
        class_="training",
    )


def _figure(caption: str, kind: type[LinearAxis] | type[LogAxis], curves: Sequence[_Curve]) -> str:
    last = len(curves[0].values) - 1
    shown = sorted({round(k) for k in np.linspace(0, last, min(last + 1, _MOST_DRAWN))})
    axis = kind.of([value for drawn in curves for value in drawn.values], _TOP, _BOTTOM)
    step = 100 / (last + 1)
    numbered = range(0, last + 1, stride(last + 1, _MOST_LABELS))
    marks = [
        *(line(0, y, 100, y, "grid") for y, _ in axis.marks()),
        line(0, _FLOOR, 100, _FLOOR, "base"),
        *(_step_label(k, last) for k in numbered),
        words("50%", _FLOOR + 31, "updates made", "middle", "label"),
        stretched([_drawn(drawn, shown, axis) for drawn in curves], last + 1, _HEIGHT),
        *_hits(curves, shown, step),
    ]
    names = ", ".join(drawn.name for drawn in curves)
    what = f"{caption}: {names}, over {last} updates. The table below holds some of them."
    plot = area(marks, _HEIGHT, "min-width:240px", what, dense=len(shown) > _MOST_DOTS)
    legend = [tag("li", swatch(drawn.kind) + text(drawn.name)) for drawn in curves]
    return tag(
        "figure",
        tag("figcaption", text(caption)),
        tag("ul", *legend, class_="legend"),
        framed(labels([*axis.beyond(), *axis.marks()], _HEIGHT), plot, caption),
    )


def _step_label(k: int, last: int) -> str:
    x, anchor = 100 * (k + 0.5) / (last + 1), "middle"
    if last > _MOST_CENTRED and k in (0, last):  # in the middle of so narrow a step they would be cut off
        x, anchor = (0, "start") if k == 0 else (100, "end")
    return words(f"{x:.3f}%", _FLOOR + 15, str(k), anchor, "label")


def _drawn(drawn: _Curve, shown: Sequence[int], axis: Axis) -> str:
    points = [(k + 0.5, drawn.values[k]) for k in shown]
    if drawn.kind != "band":
        return curve(points, axis, drawn.kind)
    edge = [f"{x} {axis.y(value):.2f}" for x, value in points if axis.has(value)]
    if not edge:
        return ""
    ends = [at.split()[0] for at in (edge[0], edge[-1])]
    under = f"M{ends[0]} {_FLOOR}L{'L'.join(edge)}L{ends[1]} {_FLOOR}Z"
    return tag("path", d=under, class_="band") + tag("path", d=f"M{'L'.join(edge)}", class_="bound")


def _hits(curves: Sequence[_Curve], shown: Sequence[int], step: float) -> list[str]:
    """What a pointer finds: all digits of every step that is shown, half-way to its neighbours."""
    edges = [0.0, *((x + y + 1) / 2 for x, y in pairwise(shown)), shown[-1] + 1.0]
    found = []
    for k, left, right in zip(shown, edges, edges[1:], strict=False):
        lines = [f"after {k} update{'s' * (k != 1)}"]
        lines += [f"{drawn.name} {drawn.values[k]!r}" for drawn in curves]
        place = {"x": f"{left * step:.3f}%", "width": f"{(right - left) * step:.3f}%"}
        title = tag("title", text("\n".join(lines)))
        found.append(tag("rect", title, y=0, height=_FLOOR, class_="hit", **place))
    return found


def _table(
    series: Mapping[str, Sequence[float]], losses: Mapping[str, Sequence[float]], a: str, b: str
) -> str:
    heads = ("updates", f"{a} loss", f"{b} loss", "loss gap", "control's", "weights apart", "control's")
    columns: list[Sequence[float]] = [*series.values()]
    body = [
        tag(
            "tr",
            tag("th", str(k), scope="row", class_="number"),
            *(tag("td", text(repr(losses[run][k])), class_="number digits") for run in ("torch", "jax")),
            *(tag("td", number(values[k]), class_="number") for values in columns),
        )
        for k in spread_steps(len(columns[0]) - 1)
    ]
    cells = [tag("th", text(head), scope="col", class_="number") for head in heads]
    return scrolled(table(cells, body, "few"), "Training, a few of its steps")
