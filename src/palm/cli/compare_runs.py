"""The command that says whether two groups of runs differ: `palm compare-runs`. A thin layer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg

from palm.cli.display import Terminal
from palm.cli.flags import Request
from palm.cli.runs import runs_at
from palm.files.names import visible
from palm.training.groups import Groups, Pair, compare_groups, compare_pair


@dataclass(frozen=True, kw_only=True)
class CompareRunsRequest:
    """What `palm compare-runs` is asked for."""

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="A [A ...]")]]
    """Runs of group A, or folders with runs below them."""
    against: Annotated[tuple[Path, ...], arg(metavar="B [B ...]")]
    """Those of group B."""
    seed: int = 0
    """Seed of the bootstrap."""
    json: bool = False
    """Print the answer as JSON."""


def compare_runs(request: Request[CompareRunsRequest]) -> int:
    """Say whether the gap between the validation losses of two groups of runs is noise.

    Compares the last validation loss of each run. If both groups have the same seeds, runs of one
    seed are pairs. The interval is of a bootstrap, widened for few runs as Student's t is.

    Of two single runs of one seed, such as a run and its repetition in the other framework, it compares the
    losses step by step, and says whether they are one run up to rounding.

    Exit status: 0 the gap is noise or rounding, 1 it is more, 3 one run each cannot say.
    """
    a, b = runs_at(request.runs), runs_at(request.against)
    if len(a) == len(b) == 1:
        return _compare_pair(compare_pair(a[0], b[0]), as_json=request.json)
    found = compare_groups(a, b, seed=request.seed)
    if request.json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        _show(found)
    return 0 if found.gap.is_noise else 1


def _compare_pair(found: Pair, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        lines = [f"A: {visible(found.a.name)}", f"B: {visible(found.b.name)}"]
        lines += [f"the runs differ in: {', '.join(found.differing)}"] if found.differing else []
        Terminal().print("\n".join([*lines, found.told()]), highlight=False, markup=False)
    return 0 if found.grown is None else 3


def _show(found: Groups) -> None:
    console, shown = Terminal(), Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for name in ("group", "run", "seed", "step", "validation"):
        shown.add_column(name, justify="left" if name in ("group", "run") else "right", overflow="fold")
    for group, runs in (("A", found.a), ("B", found.b)):
        for run in runs:
            numbers = str(run.settings["seed"]), f"{run.step}/{run.steps}", f"{run.last('val_loss'):.4f}"
            shown.add_row(group, Text(visible(run.name)), *numbers)
    console.print(shown, highlight=False)
    m, n = found.gap.samples
    how = f"{m} pairs of one seed" if found.gap.paired else f"{m} runs and {n} runs, not paired"
    lines = [f"compared: {how}"]
    lines += [f"the runs differ in: {', '.join(found.differing)}"] if found.differing else []
    console.print("\n".join([*lines, found.gap.told("A", "B")]), highlight=False, markup=False)
