"""The plot of a run: RUN/loss.png."""

from __future__ import annotations

import io
import os
from pathlib import Path

from matplotlib.figure import Figure

from palm.files.write import replace_file
from palm.training.run_folder import PLOT, Run


def plot_run(run: Run) -> Path:
    """Draw the loss of each step, its mean over the last 5 % of steps, and the validation loss; in nats.

    Raises `RunError` if it cannot be written.
    """
    entries = run.entries()
    steps = [entry["step"] for entry in entries]
    losses = [entry["loss"] for entry in entries]
    measured = [(entry["step"], entry["val_loss"]) for entry in entries if "val_loss" in entry]
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="#9ec5e8", linewidth=0.8, label="each batch")
    axes.plot(steps, _smoothed(losses), color="#1764ab", linewidth=1.6, label="running mean")
    if measured:
        axes.plot(*zip(*measured, strict=True), color="#d9480f", marker="o", markersize=3, label="validation")
    axes.set(
        xlabel="step",
        ylabel="loss (nats per token)",
    )
    axes.set_title(_shown(run.path.resolve().name), parse_math=False)
    axes.grid(alpha=0.3)
    if losses:
        axes.legend(frameon=False)
    # No pyplot: it would look for a display, and keep every figure until the process ends.
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    with run.writing():
        replace_file(run.path / PLOT, drawn.getvalue())
    return run.path / PLOT


def _smoothed(losses: list[float]) -> list[float]:
    span = max(1, len(losses) // 20)
    return [sum(losses[max(0, i - span + 1) : i + 1]) / min(i + 1, span) for i in range(len(losses))]


def _shown(name: str) -> str:
    """A file's name as text that can be drawn: it is bytes, not all of them text, and not all visible."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
