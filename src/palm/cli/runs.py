"""The commands that compare runs: `palm runs`, `palm plot`. A thin layer."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg

from palm.cli.display import Terminal, tell
from palm.cli.flags import Request
from palm.errors import RunError
from palm.files.names import visible
from palm.files.write import remedy, replace_file
from palm.training.curves import Axis, curves
from palm.training.plot import describe, plot_runs
from palm.training.run_folder import Run
from palm.training.runs import ListedRun, RunList, list_runs, read_run, table

KINDS = (".png", ".svg", ".html")


@dataclass(frozen=True, kw_only=True)
class RunsRequest:
    """What `palm runs` is asked for."""

    folder: Positional[Annotated[Path, arg(metavar="[FOLDER]")]] = Path()
    """The folder to look in, and below."""
    json: bool = False
    """Print the list as JSON, with all settings."""


def runs(request: Request[RunsRequest]) -> int:
    """List the runs below a folder: steps, losses, and the settings in which they differ.

    A run that is damaged is listed with the reason.
    """
    found = list_runs(request.folder)
    if request.json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        _show(found)
    return 0


def _show(found: RunList) -> None:
    console = Terminal()
    if not found.runs and not found.damaged:
        console.print(f"no runs in {found.folder}", highlight=False, markup=False)
    if found.runs:
        head, rows = table(found.runs)
        shown = Table(box=None, padding=(0, 2, 0, 0), header_style="")
        for name in head:
            is_number = name in ("step", "loss", "validation", "lowest")
            shown.add_column(name, justify="right" if is_number else "left", overflow="fold")
        for row in rows:
            shown.add_row(*(Text(visible(value)) for value in row))
        console.print(shown, highlight=False)
    for name, why in found.damaged.items():
        console.print(f"damaged: {name}: {why}", highlight=False, markup=False)


@dataclass(frozen=True, kw_only=True)
class PlotRequest:
    """What `palm plot` is asked for."""

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN [RUN ...]")]]
    """Runs, or folders with runs below them."""
    out: Path = Path("losses.png")
    """File to write: .png, .svg, or .html, which has a table of the runs as well."""
    x: Axis = "step"
    """What the losses are drawn over."""


def plot(request: Request[PlotRequest]) -> int:
    """Draw the losses of several runs in one picture.

    Runs that differ in nothing but the seed are one line, their mean, in a band from the lowest to the
    highest.
    """
    if request.out.suffix not in KINDS:
        raise RunError(f"out must end in {', '.join(KINDS)}; got out={request.out}. Name another file.")
    found = curves(runs_at(request.runs), request.x)
    title = ", ".join(dict.fromkeys(path.resolve().name for path in request.runs))
    picture = plot_runs(found, title, request.x, request.out.suffix[1:])
    try:
        replace_file(request.out, picture)
    except OSError as error:
        raise RunError(
            f"out must be a writable file; got out={request.out}: {error.strerror}. {remedy(error)}"
        ) from None
    Terminal().print(f"{describe(found)}\n{request.out}", highlight=False, markup=False)
    return 0


def runs_at(paths: tuple[Path, ...]) -> list[ListedRun]:
    """The runs at these paths, and below those that are none; names tell them apart."""
    found: dict[Path, ListedRun] = {}
    for path in paths:
        name = path.resolve().name if len(paths) == 1 else _short(path, paths)
        if Run(path).is_run:
            found.setdefault(path.resolve(), read_run(path, name))
            continue
        listed = list_runs(path)
        tell(*(f"left out {path / damaged}: {why}" for damaged, why in listed.damaged.items()))
        for run in listed.runs:
            below = run.name if len(paths) == 1 else os.path.join(name, run.name)
            found.setdefault(
                run.path.resolve(), ListedRun(run.path, below, run.steps, run.settings, run.entries)
            )
    return list(found.values())


def _short(path: Path, paths: tuple[Path, ...]) -> str:
    """The path below the folder that all of them are in."""
    resolved = path.resolve()
    common = os.path.commonpath([other.resolve().parent for other in paths])
    return os.path.relpath(resolved, common)
