"""The plot of two programs in their own precision: the error of each aligned operation on both sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from palm.files.markup import tag
from palm.parity.report.axes import LogAxis, area, curve, framed, labels, line, stretched, words
from palm.parity.report.words import short

_TOP, _BOTTOM, _FLOOR, _HEIGHT = 12, 200, 220, 250
# Operations whose dots can be told apart.
_MOST_DOTS = 200


def precision_plot(report: Mapping[str, Any]) -> Markup | None:
    """Errors of both sides over the aligned operations, in the order of the first; None if not measured."""
    rows = [(one, float(one["error_a"]), float(one["error_b"])) for one in report.get("rows", ())]
    if not rows:
        return None
    names = [side["label"] for side in report["sides"]]
    axis = LogAxis.of([error for _, *errors in rows for error in errors], _TOP, _BOTTOM)
    curves = [
        curve([(i + 0.5, row[k]) for i, row in enumerate(rows)], axis, side)
        for k, side in ((1, "a"), (2, "b"))
    ]
    step = 100 / len(rows)
    marks = [
        *(line(0, y, 100, y, "grid") for y, _ in axis.marks()),
        line(0, _FLOOR, 100, _FLOOR, "base"),
        stretched(curves, len(rows), _HEIGHT),
        words("0%", _FLOOR + 20, "first operation", "start", "label"),
        words("100%", _FLOOR + 20, "outputs", "end", "label"),
        *(_hit(row, i * step, step, names) for i, row in enumerate(rows)),
    ]
    told = (
        f"Relative errors of {names[0]} and {names[1]} at {len(rows)} aligned operations, each in its own "
        "precision."
    )
    plot = area(marks, _HEIGHT, "min-width:240px", told, dense=len(rows) > _MOST_DOTS)
    return framed(labels([*axis.beyond(), *axis.marks()], _HEIGHT), plot, "Error of each aligned operation")


def _hit(row: tuple[Mapping[str, Any], float, float], x: float, width: float, names: list[str]) -> Markup:
    one, *errors = row
    told = (
        f"{name}: {one[side]}, error {short(error)}"
        for name, side, error in zip(names, "ab", errors, strict=True)
    )
    title = tag("title", "\n".join(told))
    return tag(
        "rect", title, x=f"{x:.3f}%", width=f"{width:.3f}%", y=_TOP, height=_FLOOR - _TOP, class_="hit"
    )
