"""What is seen of a run while it runs: a bar on a terminal, lines in a pipe, TensorBoard if asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from palm.errors import ConfigError

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

    def on_broken_pipe(self) -> None:
        """Raise what `palm.cli.main.main` turns into an exit status: nobody reads the pipe any more."""
        raise BrokenPipeError


@contextmanager
def display(total: int, tensorboard: Path | None) -> Iterator[OnStep]:
    """Where each step goes: to a bar on a terminal, or else to a line now and then; and to TensorBoard."""
    console = Console(stderr=True)
    followers: list[OnStep] = []
    if tensorboard is not None:
        followers.append(_tensorboard(tensorboard / "tensorboard"))
    pace = max(1, total // 20)
    columns = (
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("train", total=total, told="starting")

        def on_step(entry: Entry) -> None:
            progress.update(task, completed=entry["step"], told=_brief(entry))
            if console.is_terminal and "val_loss" in entry:  # above the bar, where it stays
                progress.console.print(f"step {entry['step']}  {_losses(entry)}", highlight=False)
            elif not console.is_terminal and ("val_loss" in entry or entry["step"] % pace == 0):
                print(f"step {entry['step']}/{total}  {_line(entry)}", file=sys.stderr, flush=True)
            for follow in followers:
                follow(entry)

        yield on_step


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


def _tensorboard(folder: Path) -> OnStep:
    try:
        from tensorboardX import SummaryWriter  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError(
            "--tensorboard needs tensorboardX; it is not installed. "
            'Run: pip install "palm-dual[tensorboard]".'
        ) from None
    writers: list[Any] = []

    def on_step(entry: Entry) -> None:
        if not writers:  # now, for a new run's folder must be empty before its first step
            writers.append(SummaryWriter(str(folder)))
        writer = writers[0]
        for name, value in entry.items():
            if name != "step":
                writer.add_scalar(name, value, entry["step"])
        if "val_loss" in entry:
            writer.flush()

    return on_step
