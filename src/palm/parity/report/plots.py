"""The plots of one forward and backward pass as inline SVG: errors along the dataflow, and ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup

from palm.files.markup import tag
from palm.parity.finding import Finding
from palm.parity.report.axes import LogAxis, area, curve, framed, labels, line, stretched, stride, words
from palm.parity.report.words import block_and_row, in_words, tiny

# Heights inside the error plot, from the top: the first divergence's name, the lane of faults, the
# logarithmic range, and the floor under which the labels of the blocks stand.
_FAULTS, _TOP, _BOTTOM, _FLOOR, _ERROR_HEIGHT = 20, 54, 268, 296, 332
_ROW, _HEAT_HEADER = 24, 20
# Blocks that an axis can name, blocks whose cells can hold a number, taps whose dots can be told apart.
_MOST_LABELS, _MOST_NUMBERS, _MOST_DOTS = 20, 16, 200
_DRAWN = ("error_a", "error_b", "cross", "bound_a", "bound_b")


def error_plot(taps: Sequence[Finding], label_a: str, label_b: str, first: str | None) -> Markup:
    """Errors of both sides, their difference and the bound over the taps in dataflow order."""
    axis = LogAxis.of([getattr(tap, measure) for tap in taps for measure in _DRAWN], _TOP, _BOTTOM)
    marks = [
        tag("rect", y=_FAULTS, width="100%", height=8, class_="lane"),
        *(line(0, y, 100, y, "grid") for y, _ in axis.marks()),
        *_block_marks(taps),
        stretched(_curves(taps, axis), len(taps), _ERROR_HEIGHT),
        *_fault_marks(taps, first),
        *(_hit(tap, i, len(taps), label_a, label_b) for i, tap in enumerate(taps)),
    ]
    narrowest = max(240, round(0.9 * len(taps)))
    plot = area(
        marks,
        _ERROR_HEIGHT,
        f"min-width:{narrowest}px",
        f"Relative errors of {label_a} and {label_b} at {len(taps)} taps in dataflow order, and the bound "
        "of rounding. The table of taps holds the same numbers.",
        dense=len(taps) > _MOST_DOTS,
    )
    places = [(_FAULTS, "fault"), *axis.beyond(), *axis.marks()]
    names = labels(places, _ERROR_HEIGHT)
    return framed(names, plot, "Error along the dataflow")


def heat_strip(
    findings: Sequence[Finding], label_a: str, label_b: str, bar: float, first: str | None, what: str
) -> Markup:
    """Ratios as coloured cells, a row for each name and a column for each block."""
    cells = {(row, block): f for f in findings for block, row in [block_and_row(f.name)] if block is not None}
    rows = list(dict.fromkeys(row for row, _ in cells))
    blocks = sorted({block for _, block in cells})
    numbered = len(blocks) <= _MOST_NUMBERS
    marks = [
        words(f"{100 * (i + 0.5) / len(blocks):.3f}%", 13, str(blocks[i]), "middle", "label")
        for i in range(0, len(blocks), stride(len(blocks), _MOST_LABELS))
    ]
    # Outlines lie over the neighbours.
    for (row, block), finding in sorted(cells.items(), key=lambda cell: _outline(cell[1], bar, first)):
        i, y = blocks.index(block), _HEAT_HEADER + _ROW * rows.index(row)
        place = {"x": f"{100 * i / len(blocks):.3f}%", "y": y, "width": f"{100 / len(blocks):.3f}%"}
        title = tag("title", in_words(finding, label_a, label_b))
        layers = [tag("rect", class_=layer, height=_ROW, **place) for layer in ("ring", "cell")]
        if numbered:
            middle = f"{100 * (i + 0.5) / len(blocks):.3f}%"
            layers.append(words(middle, y + 16, tiny(finding.ratio), "middle"))
        marks.append(tag("g", title, *layers, class_=f"hit {heat_class(finding, bar, first)}"))
    narrowest, widest = (42, 54) if numbered else (7, 12)
    plot = area(
        marks,
        _HEAT_HEADER + _ROW * len(rows),
        f"min-width:{narrowest * len(blocks)}px;max-width:{widest * len(blocks)}px",
        f"Ratios of {len(cells)} {what} by block. A table below holds the same numbers.",
    )
    names = [tag("span", row) for row in ("block", *rows)]
    return framed(tag("div", *names, class_="rows", aria_hidden="true"), plot, f"Ratios of the {what}")


def heat_class(finding: Finding, bar: float, first: str | None) -> str:
    """The class of a ratio's colour, and of its outline if it has one."""
    ratio = finding.ratio
    colour = "h-nan" if math.isnan(ratio) else f"h{sum(ratio > edge for edge in heat_edges(bar))}"
    return f"{colour} {_outline(finding, bar, first)}".strip()


def _outline(finding: Finding, bar: float, first: str | None) -> str:
    if finding.name == first:
        return "first"
    return "outside" if finding.fault and finding.ratio <= bar else ""


def heat_edges(bar: float) -> tuple[float, ...]:
    """Upper ends of all colours but the last; the fourth is the bar."""
    return (0.0, 0.5, 1.0, bar, 10.0, 100.0, 1000.0)


def _curves(taps: Sequence[Finding], axis: LogAxis) -> Iterable[Markup]:
    if all(tap.bound_a == tap.bound_b for tap in taps):
        yield _band(taps, axis, lambda tap: tap.bound_a, "both")
    else:
        yield _band(taps, axis, lambda tap: tap.bound_a, "a")
        yield _band(taps, axis, lambda tap: tap.bound_b, "b")
    # The difference is widest and lowest: where a faulty side covers it, both still show.
    yield curve([(i + 0.5, tap.cross) for i, tap in enumerate(taps)], axis, "cross")
    yield curve([(i + 0.5, tap.error_a) for i, tap in enumerate(taps)], axis, "a")
    yield curve([(i + 0.5, tap.error_b) for i, tap in enumerate(taps)], axis, "b")


def _band(taps: Sequence[Finding], axis: LogAxis, of: Callable[[Finding], float], side: str) -> Markup:
    steps = "".join(f"V{axis.y(of(tap)):.2f}H{i + 1}" for i, tap in enumerate(taps))
    area = tag("path", d=f"M0 {_FLOOR}{steps}V{_FLOOR}Z", class_="band")
    return area + tag("path", d=f"M0 {axis.y(of(taps[0])):.2f}{steps}", class_=f"bound {side}")


def _block_marks(taps: Sequence[Finding]) -> Iterable[Markup]:
    """A rule and a number for as many blocks as have room, and where the last one ends."""
    spans: dict[int, list[int]] = {}
    for i, tap in enumerate(taps):
        block, _ = block_and_row(tap.name)
        if block is not None:
            spans.setdefault(block, []).append(i)
    step = 100 / len(taps)
    yield line(0, _FLOOR, 100, _FLOOR, "base")
    for block, places in spans.items():
        start, end = places[0] * step, (places[-1] + 1) * step
        if block % stride(len(spans), _MOST_LABELS) == 0:
            yield line(start, _TOP - 6, start, _FLOOR + 5, "rule")
            yield words(f"{(start + end) / 2:.3f}%", _FLOOR + 15, str(block), "middle", "label")
        if block == max(spans):
            yield line(end, _TOP - 6, end, _FLOOR + 5, "rule")
    yield words("0%", _FLOOR + 31, "embed", "start", "label")
    yield words("50%", _FLOOR + 31, "block", "middle", "label")
    yield words("100%", _FLOOR + 31, "norm, logits", "end", "label")


def _fault_marks(taps: Sequence[Finding], first: str | None) -> Iterable[Markup]:
    step = 100 / len(taps)
    for i, tap in enumerate(taps):
        if tap.fault:
            yield tag("rect", x=f"{i * step:.3f}%", y=_FAULTS, width=f"{step:.3f}%", height=8, class_="fault")
        if tap.name == first:
            x = (i + 0.5) * step
            yield line(x, _FAULTS, x, _FLOOR, "first")
            yield words(f"{x:.3f}%", 13, f"first: {tap.name}", "start" if x < 50 else "end", "first")


def _hit(tap: Finding, i: int, count: int, label_a: str, label_b: str) -> Markup:
    title = tag("title", in_words(tap, label_a, label_b))
    place = {"x": f"{100 * i / count:.3f}%", "width": f"{100 / count:.3f}%"}
    return tag("rect", title, y=_FAULTS, height=_FLOOR - _FAULTS, class_="hit", **place)
