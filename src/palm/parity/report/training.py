"""The report on training: three plots over the steps, and a few steps in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup

from palm.files.markup import tag
from palm.parity.drift.drift import RUNS, spread_steps
from palm.parity.finding import Outcome
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
    words,
)

_SERIES = ("gap", "control_gap", "distance", "control_distance")
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


@dataclass(frozen=True)
class Figure:
    """A plot over the steps: what it shows, kind and name of each curve, and the plot."""

    caption: str
    legend: list[tuple[str, str]]
    plot: Markup


def training_outcome(training: Mapping[str, Any]) -> Outcome:
    """The outcome of what `Drift.to_dict()` gave: if not even the bar is exceeded, nothing is proven."""
    if training["agree"]:
        return "agree"
    over = training["not_finite"] or not float(training["ratio"]) <= training["bar"]
    return "differ" if over else "cannot tell"


def training_figures(training: Mapping[str, Any], a: str, b: str) -> list[Figure]:
    """Losses, their gap, and the distance of the weights, from what `Drift.to_dict()` gave."""
    gap, control_gap, distance, control_distance = (_numbers(training[name]) for name in _SERIES)
    cross, control, bar = f"{a} against {b}", f"{a} against its control", float(training["bar"])
    return [
        _figure(
            "Loss of each batch before the update, in nats",
            LinearAxis,
            [
                _Curve(kind, name, _numbers(training["losses"][run]))
                for kind, name, run in (("a", a, RUNS[0]), ("b", b, RUNS[1]))
            ],
        ),
        _figure(
            "Gap between the losses, in nats; logarithmic",
            LogAxis,
            [_Curve("cross", cross, gap), _Curve("control", control, control_gap)],
        ),
        _figure(
            "Distance between the weights, relative to their norm; logarithmic",
            LogAxis,
            [
                _Curve(
                    "band",
                    f"up to {bar:g} times the control: what rounding explains",
                    [bar * value for value in control_distance],
                ),
                _Curve("cross", cross, distance),
                _Curve("control", control, control_distance),
            ],
        ),
    ]


def training_rows(training: Mapping[str, Any]) -> list[tuple[int, list[float], list[float]]]:
    """A few steps: updates made; both losses; gaps and distances."""
    losses = [_numbers(training["losses"][run]) for run in RUNS[:2]]
    series = [_numbers(training[name]) for name in _SERIES]
    return [
        (k, [values[k] for values in losses], [values[k] for values in series])
        for k in spread_steps(training["steps"])
    ]


def _numbers(values: Sequence[Any]) -> list[float]:
    return [float(value) for value in values]


def _figure(caption: str, kind: type[LinearAxis] | type[LogAxis], curves: Sequence[_Curve]) -> Figure:
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
    beside = labels([*axis.beyond(), *axis.marks()], _HEIGHT)
    return Figure(caption, [(drawn.kind, drawn.name) for drawn in curves], framed(beside, plot, caption))


def _step_label(k: int, last: int) -> Markup:
    x, anchor = 100 * (k + 0.5) / (last + 1), "middle"
    if last > _MOST_CENTRED and k in (0, last):  # in the middle of so narrow a step they would be cut off
        x, anchor = (0, "start") if k == 0 else (100, "end")
    return words(f"{x:.3f}%", _FLOOR + 15, str(k), anchor, "label")


def _drawn(drawn: _Curve, shown: Sequence[int], axis: Axis) -> Markup:
    points = [(k + 0.5, drawn.values[k]) for k in shown]
    if drawn.kind != "band":
        return curve(points, axis, drawn.kind)
    edge = [f"{x} {axis.y(value):.2f}" for x, value in points if axis.has(value)]
    if not edge:
        return Markup("")
    ends = [at.split()[0] for at in (edge[0], edge[-1])]
    under = f"M{ends[0]} {_FLOOR}L{'L'.join(edge)}L{ends[1]} {_FLOOR}Z"
    return tag("path", d=under, class_="band") + tag("path", d=f"M{'L'.join(edge)}", class_="bound")


def _hits(curves: Sequence[_Curve], shown: Sequence[int], step: float) -> list[Markup]:
    """What a pointer finds: all digits of every step that is shown, half-way to its neighbours."""
    edges = [0.0, *((x + y + 1) / 2 for x, y in pairwise(shown)), shown[-1] + 1.0]
    found = []
    for k, left, right in zip(shown, edges, edges[1:], strict=False):
        lines = [f"after {k} update{'s' * (k != 1)}"]
        lines += [f"{drawn.name} {drawn.values[k]!r}" for drawn in curves]
        place = {"x": f"{left * step:.3f}%", "width": f"{(right - left) * step:.3f}%"}
        title = tag("title", "\n".join(lines))
        found.append(tag("rect", title, y=0, height=_FLOOR, class_="hit", **place))
    return found
