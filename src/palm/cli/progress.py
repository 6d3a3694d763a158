"""How far the processes of a comparison are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from palm.files.names import visible


@contextmanager
def progress(totals: Mapping[str, int], names: Mapping[str, str]) -> Iterator[Callable[[str, str], None]]:
    """Show bars on standard error if that is a terminal.

    `totals`: the steps of each job; `names`: what a job is called if not by its key. Yields a function to
    call with a job and the step that it has finished.
    """
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:8}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[step]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as display:
        tasks = {
            key: display.add_task(visible(names.get(key, key)), total=total, step="waiting")
            for key, total in totals.items()
        }
        yield lambda key, step: display.update(tasks[key], advance=1, step=step)
