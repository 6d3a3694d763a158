"""The plot of docs/performance.md: training steps by length, and one more token."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measures import Group, values
from speed_report import groups_of, rows
from timing import spread

# That colour-blind readers tell apart, by Okabe and Ito; an architecture that palm has twice is drawn once.
COLOURS = {
    "palm torch": "#0072b2",
    "palm torch, bf16": "#56b4e9",
    "palm jax": "#009e73",
    "palm jax, bf16": "#66c2a5",
    "palm_lite": "#d55e00",
    "palm_jax": "#e69f00",
    "x-transformers": "#cc79a7",
    "falcon": "#777777",
    "falcon, dynamic": "#777777",
    "falcon, static": "#999999",
}


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw one machine's results. The page under it may be dark: the figure's own is white."""
    figure = Figure(figsize=(10, 4.2), layout="constrained", facecolor="white")
    steps, tokens = figure.subplots(1, 2)
    groups = groups_of(result)
    _draw_steps(steps, [group for group in groups if group["case"] == "training"])
    _draw_tokens(
        tokens,
        [group for group in groups if group["case"] == "decode" and group["name"].startswith("batch 1,")],
    )
    # The same results give the same bytes.
    with mpl.rc_context({"svg.hashsalt": "palm"}):
        figure.savefig(path, metadata={"Date": None})


def _medians(groups: list[Group]) -> dict[str, dict[int, float]]:
    """Seconds of each side by length, from the first comparison that has them."""
    found: dict[str, dict[int, float]] = {}
    for group in groups:
        for name in (row.name for row in rows(group) if row.name in COLOURS and not row.note):
            length = group["sides"][name]["spec"]["length"]
            found.setdefault(name, {}).setdefault(length, spread(values(group, name)).median)
    return found


def _draw_steps(axes: Axes, groups: list[Group]) -> None:
    lengths = set()
    for name, curve in _medians(groups).items():
        ours = name.startswith("palm ")
        style = {"marker": "o", "linestyle": "-"} if ours else {"marker": "s", "linestyle": "--"}
        axes.loglog(list(curve), list(curve.values()), label=name, color=COLOURS[name], markersize=4, **style)
        lengths |= set(curve)
    axes.set_xticks(sorted(lengths), [f"{length:,}" for length in sorted(lengths)])
    axes.minorticks_off()
    axes.set(title="training step", xlabel="tokens", ylabel="seconds")
    axes.grid(alpha=0.3)
    if lengths:
        axes.legend(frameon=False, fontsize="small")


def _draw_tokens(axes: Axes, groups: list[Group]) -> None:
    found = {name: 1e3 * next(iter(curve.values())) for name, curve in _medians(groups).items()}
    names = sorted(found, key=found.__getitem__, reverse=True)
    drawn = axes.barh(names, [found[name] for name in names], color=[COLOURS[name] for name in names])
    axes.bar_label(drawn, fmt="%.3g", padding=3)
    axes.set(title="one more token", xlabel="milliseconds", xscale="log")
    axes.margins(x=0.15)
