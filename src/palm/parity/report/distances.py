"""The plot of a program of which only logits are seen: how far they are, as they are and with each cause."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from palm.files.markup import tag
from palm.parity.report.axes import LogAxis, area, framed
from palm.parity.report.words import short

_ROW, _HEAD = 28, 20


@dataclass(frozen=True)
class Distance:
    """How far the logits are from the palm model's, as it is or with a cause applied."""

    name: str
    value: float
    explained: bool


def distances(report: Mapping[str, Any]) -> list[Distance]:
    """The distance from the palm model as it is, then from it with each cause that explains it."""
    rows = [("palm model", float(report["before"]))]
    rows += [(one["cause"], float(one["after"])) for one in report["likenesses"]]
    return [Distance(name, value, value <= report["bound"]) for name, value in rows]


def distance_plot(report: Mapping[str, Any]) -> Markup:
    """A dot for each distance on a logarithmic axis, on the band of what rounding explains."""
    rows, bound = distances(report), report["bound"]
    height = _HEAD + _ROW * len(rows)
    axis = LogAxis.of([bound, *(row.value for row in rows)], top=0, bottom=100)
    label = f"Distance of the logits on a logarithmic axis; rounding explains {bound:.1e}. " + "; ".join(
        f"{row.name}: {row.value:.1e}" for row in rows
    )
    # The axis runs from left to right here: its heights, in percent from the bottom, are places along x.
    marks = [tag("rect", width=f"{_along(axis, bound):.3f}%", y=_HEAD, height=height, class_="band")]
    marks += _grid(axis, height)
    marks.append(_upright(_along(axis, bound), height, "bound"))
    marks += [_dot(axis, row, _HEAD + _ROW * (i + 0.5)) for i, row in enumerate(rows)]
    names = [tag("span", name) for name in ("distance", *(row.name for row in rows))]
    return framed(
        tag("div", *names, class_="rows tall", aria_hidden="true"),
        area(marks, height, "min-width:200px", label),
        "Distance of the logits",
    )


def _along(axis: LogAxis, value: float) -> float:
    """Where a value stands, in percent: zero at the left edge, what is not finite at the right."""
    return min(max(_inset(100 - axis.y(value)), 4.0), 96.0)


def _inset(x: float) -> float:
    """Room for a dot at both ends of the axis."""
    return 6 + 0.88 * x


def _upright(x: float, height: int, class_: str) -> Markup:
    return tag("line", x1=f"{x:.3f}%", x2=f"{x:.3f}%", y1=_HEAD, y2=height, class_=class_)


def _grid(axis: LogAxis, height: int) -> Iterator[Markup]:
    for y, name in axis.marks():
        x = _inset(100 - y)
        yield _upright(x, height, "grid")
        yield tag("text", name, x=f"{x:.3f}%", y=13, text_anchor="middle", class_="label")


def _dot(axis: LogAxis, row: Distance, y: float) -> Markup:
    title = tag("title", f"{row.name}\ndistance {short(row.value)}")
    kind = "explained" if row.explained else "beyond"
    return tag("circle", title, cx=f"{_along(axis, row.value):.3f}%", cy=y, r=6, class_=f"dot hit {kind}")
