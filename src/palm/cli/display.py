"""What is seen of a run while it runs: a bar on a terminal, lines in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment

from palm.files.names import visible

if TYPE_CHECKING:
    from palm.training.trained import Entry, OnStep


# Wider than anything that a command prints.
_UNWRAPPED = 1_000_000


class Terminal(Console):
    """Standard output of a command: as wide as the terminal, and unwrapped where there is none.

    Scripts read lines, so a pipe or a file gets each row and each sentence in one.
    """

    def __init__(self) -> None:
        super().__init__()
        if not self.file.isatty():
            self.width = _UNWRAPPED

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """What is printed, with every character of names and tokens visible."""
        for segment in super().render(renderable, options):
            kept = segment.control or segment.text.isprintable()
            yield segment if kept else Segment(visible(segment.text, keep="\n"), segment.style)

    def on_broken_pipe(self) -> None:
        """Raise what `palm.cli.main.main` turns into an exit status: nobody reads the pipe any more."""
        raise BrokenPipeError


@contextmanager
def display(total: int) -> Iterator[OnStep]:
    """Where each step is seen: on a bar on a terminal, or else in a line now and then.

    A display that fails gets no other step. That ends no run, and is told at the end.
    """
    console = Console(stderr=True)
    pace = max(1, total // 20)
    columns = (
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
    )
    failed: list[str] = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("train", total=total, told="starting")

        def show(entry: Entry) -> None:
            progress.update(task, completed=entry["step"], told=_brief(entry))
            if console.is_terminal and "val_loss" in entry:  # above the bar, where it stays
                progress.console.print(f"step {entry['step']}  {_losses(entry)}", highlight=False)
            elif not console.is_terminal and ("val_loss" in entry or entry["step"] % pace == 0):
                print(f"step {entry['step']}/{total}  {_line(entry)}", file=sys.stderr, flush=True)

        def on_step(entry: Entry) -> None:
            try:
                if not failed:
                    show(entry)
            except Exception as error:
                failed.append(f"the display failed at step {entry['step']}: {error}")

        yield on_step
    tell(*failed)


def tell(*lines: str) -> None:
    """Print lines on standard error, or nothing if it takes none."""
    with suppress(OSError, ValueError):
        for line in lines:
            print(visible(line, keep="\n"), file=sys.stderr, flush=True)


def _brief(entry: Entry) -> str:
    """What fits beside a bar in 80 columns."""
    parts = [f"loss {entry['loss']:.3f}"]
    if "bits_per_byte" in entry:
        parts.append(f"{entry['bits_per_byte']:.3f} bits/byte")
    parts.append(f"{entry['tokens_per_s']:,.0f} tokens/s")
    if "mfu" in entry:
        parts.append(f"MFU {entry['mfu']:.0%}")
    return " ".join(parts)


def _losses(entry: Entry) -> str:
    parts = [f"loss {entry['loss']:.4f} nats"]
    if "bits_per_byte" in entry:
        parts.append(f"{entry['bits_per_byte']:.3f} bits/byte")
    if "val_loss" in entry:
        parts.append(f"validation {entry['val_loss']:.4f} nats")
    return "  ".join(parts)


def _line(entry: Entry) -> str:
    parts = [_losses(entry), f"{entry['tokens_per_s']:,.0f} tokens/s"]
    if "mfu" in entry:
        parts.append(f"MFU {entry['mfu']:.1%}")
    return "  ".join(parts)
