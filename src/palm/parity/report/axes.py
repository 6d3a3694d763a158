"""What the report's plots stand on: axes, curves, and the frame that lets a plot fit a phone.

Positions along x are percentages and curves live in a nested viewport that stretches, so a plot fits a phone
with its type at full size. Colours and strokes are the template's, by class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from palm.files.markup import tag

# Distance of the lanes of zero and of what is not finite from the range between them.
_ZERO_LANE, _ENDLESS_LANE = 18, 16
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class LogAxis:
    """Decades from `low` at y = `bottom` to `high` at `top`; zero and what is not finite lie beyond."""

    low: int
    high: int
    endless: bool
    top: int
    bottom: int

    @classmethod
    def of(cls, values: Sequence[float], top: int, bottom: int) -> LogAxis:
        """The whole decades around `values`."""
        logs = [math.log10(value) for value in values if value > 0 and math.isfinite(value)]
        low = math.floor(min(logs, default=-1.0))
        high = max(low + 1, math.ceil(max(logs, default=0.0)))
        return cls(low, high, not all(map(math.isfinite, values)), top, bottom)

    def has(self, value: float) -> bool:
        """Whether a value has a place within the range."""
        return value > 0 and math.isfinite(value)

    def y(self, value: float) -> float:
        """Height of a value."""
        if not math.isfinite(value):
            return self.top - _ENDLESS_LANE
        return self._height(math.log10(value)) if value > 0 else self.bottom + _ZERO_LANE

    def marks(self) -> Iterable[tuple[float, str]]:
        """Height and label of each line across."""
        for power in range(self.low, self.high + 1, math.ceil((self.high - self.low) / 9)):
            yield self._height(power), "10" + str(power).translate(_SUPERSCRIPTS)

    def beyond(self) -> Iterable[tuple[float, str]]:
        """Height and label of each lane beyond the range."""
        yield self.y(0.0), "0"
        if self.endless:
            yield self.y(math.inf), "∞, nan"

    def _height(self, log: float) -> float:
        return self.bottom - (log - self.low) / (self.high - self.low) * (self.bottom - self.top)


@dataclass(frozen=True)
class LinearAxis:
    """Round numbers `low` at y = `bottom`, `low + step`, … up to `top`; what is not finite lies beyond."""

    low: float
    step: float
    steps: int
    endless: bool
    top: int
    bottom: int

    @classmethod
    def of(cls, values: Sequence[float], top: int, bottom: int) -> LinearAxis:
        """Four to ten steps of 1, 2 or 5 times a power of ten around `values`."""
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        span = max(max(finite) - min(finite), 1e-6 * max(map(abs, finite)), 1e-30)
        power = 10.0 ** math.floor(math.log10(span / 4))
        step = power * max(s for s in (1, 2, 5) if s * power <= span / 4)
        low = math.floor(min(finite) / step)
        steps = max(1, math.ceil(max(finite) / step) - low)
        return cls(low * step, step, steps, len(finite) < len(values), top, bottom)

    def has(self, value: float) -> bool:
        """Whether a value has a place within the range."""
        return math.isfinite(value)

    def y(self, value: float) -> float:
        """Height of a value."""
        if not math.isfinite(value):
            return self.top - _ENDLESS_LANE
        return self.bottom - (value - self.low) / (self.step * self.steps) * (self.bottom - self.top)

    def marks(self) -> Iterable[tuple[float, str]]:
        """Height and label of each line across."""
        digits = max(0, -math.floor(math.log10(self.step)))
        for i in range(self.steps + 1):
            value = self.low + i * self.step
            yield self.y(value), f"{value:.{digits}f}" if digits < 7 and abs(value) < 1e6 else f"{value:.3g}"

    def beyond(self) -> Iterable[tuple[float, str]]:
        """Height and label of the lane beyond the range."""
        if self.endless:
            yield self.y(math.inf), "∞, nan"


Axis = LogAxis | LinearAxis


def labels(places: Iterable[tuple[float, str]], height: int) -> Markup:
    """The labels beside a plot."""
    names = [tag("text", name, x=50, y=f"{y + 4:.1f}", text_anchor="end") for y, name in places]
    return tag("svg", *names, class_="axis", width=54, height=height, aria_hidden="true")


def curve(points: Sequence[tuple[float, float]], axis: Axis, side: str) -> Markup:
    """A line through what has a place on the axis, broken elsewhere, and a dot at every point."""
    path, dots, joined = [], [], False
    for x, value in points:
        point = f"{x} {axis.y(value):.2f}"
        if axis.has(value):
            path.append(f"{'L' if joined else 'M'}{point}")
        dots.append(f"M{point}h0")
        joined = axis.has(value)
    return tag("path", d="".join(path), class_=f"line {side}") + tag(
        "path", d="".join(dots), class_=f"dots {side}"
    )


def stretched(marks: Iterable[Markup], width: float, height: int) -> Markup:
    """A viewport whose x, 0 … width, is stretched over the plot."""
    return tag(
        "svg",
        *marks,
        viewBox=f"0 0 {width} {height}",
        width="100%",
        height=height,
        preserveAspectRatio="none",
    )


def area(marks: Iterable[Markup], height: int, style: str, label: str, dense: bool = False) -> Markup:
    """A plot's own part, as wide as there is room for."""
    class_ = "area dense" if dense else "area"
    size = {"width": "100%", "height": height, "style": style}
    return tag("svg", *marks, class_=class_, role="img", aria_label=label, **size)


def framed(beside: Markup, plot: Markup, label: str) -> Markup:
    """A plot that scrolls sideways beside its labels, which do not."""
    scroll = tag("div", plot, class_="scroll", tabindex=0, role="region", aria_label=label)
    return tag("div", beside, scroll, class_="frame")


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line; x in percent."""
    return tag("line", x1=f"{x1:.3f}%", y1=f"{y1:.1f}", x2=f"{x2:.3f}%", y2=f"{y2:.1f}", class_=class_)


def words(x: str, y: float, content: str, anchor: str, class_: str | None = None) -> Markup:
    """Text in a plot."""
    return tag("text", content, x=x, y=y, text_anchor=anchor, class_=class_)


def stride(count: int, most: int) -> int:
    """Label every this many of `count`: the least of 1, 2, 5, 10, … that leaves at most `most`."""
    return next(s * 10**power for power in range(18) for s in (1, 2, 5) if count <= most * s * 10**power)


def swatch(kind: str) -> Markup:
    """A piece of a curve or an area, as a plot draws it."""
    if kind in ("band", "fault"):
        inside = [tag("rect", width=26, height=8, y=2, class_=kind)]
    else:
        inside = [
            tag("path", d="M1 6H25", class_=f"line {kind}"),
            tag("path", d="M13 6h0", class_=f"dots {kind}"),
        ]
    return tag("svg", *inside, class_="swatch", width=26, height=12, aria_hidden="true")
