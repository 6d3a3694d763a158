"""What is seen of a run while it runs: a bar on a terminal, lines in a pipe, TensorBoard if asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment

from palm.errors import ConfigError
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
def display(total: int, tensorboard: Path | None) -> Iterator[OnStep]:
    """Where each step goes: to a bar on a terminal, or else to a line now and then; and to TensorBoard.

    What cannot take a step gets no other one. That ends no run, and is told at the end. Raises `ConfigError`
    if TensorBoard is asked for and is not installed.
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
    with ExitStack() as stack:
        followers = {}
        if tensorboard is not None:
            followers["TensorBoard"] = stack.enter_context(
                _tensorboard(tensorboard / "tensorboard", pace, failed)
            )
        progress = stack.enter_context(
            Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        )
        task = progress.add_task("train", total=total, told="starting")

        def show(entry: Entry) -> None:
            progress.update(task, completed=entry["step"], told=_brief(entry))
            if console.is_terminal and "val_loss" in entry:  # above the bar, where it stays
                progress.console.print(f"step {entry['step']}  {_losses(entry)}", highlight=False)
            elif not console.is_terminal and ("val_loss" in entry or entry["step"] % pace == 0):
                print(f"step {entry['step']}/{total}  {_line(entry)}", file=sys.stderr, flush=True)

        followers["the display"] = show

        def on_step(entry: Entry) -> None:
            for name, follow in list(followers.items()):
                try:
                    follow(entry)
                except Exception as error:
                    failed.append(f"{name} failed at step {entry['step']}: {error}")
                    del followers[name]

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


@contextmanager
def _tensorboard(folder: Path, pace: int, failed: list[str]) -> Iterator[OnStep]:
    """Write each step to a file that TensorBoard reads. What goes wrong at the end is added to `failed`.

    tensorboardX's own SummaryWriter writes in a thread, which dies on a full disk; who gives it more waits
    for ever. So its file is written here.
    """
    try:
        from tensorboardX.event_file_writer import EventsWriter  # noqa: PLC0415 - an extra
        from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415
        from tensorboardX.summary import scalar  # noqa: PLC0415
    except ImportError:
        raise ConfigError(
            "--tensorboard needs tensorboardX; it is not installed. "
            'Run: pip install "palm-dual[tensorboard]".'
        ) from None
    writers: list[Any] = []

    def on_step(entry: Entry) -> None:
        if not writers:  # now, for a new run's folder must be empty before its first step
            folder.mkdir(exist_ok=True)
            writers.append(EventsWriter(str(folder / "events")))
        writer, step = writers[0], entry["step"]
        for name, value in entry.items():
            if name != "step":
                writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        if "val_loss" in entry or step % pace == 0:
            writer.flush()

    try:
        yield on_step
    finally:
        try:
            for writer in writers:
                writer.close()
        except Exception as error:
            failed.append(f"TensorBoard failed at the end: {error}")
