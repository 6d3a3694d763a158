"""The command that says whether a training fits: `palm plan`. A thin layer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

from rich.table import Table
from rich.text import Text
from tyro.conf import FlagConversionOff, Positional, arg

from palm.cli.display import Terminal
from palm.cli.flags import Architecture, ModelFlags, Optional, Request, default, given
from palm.config import DType
from palm.memory import in_units
from palm.presets import preset
from palm.recipes import Remat
from palm.spec.footprint import largest_batch
from palm.spec.plan import USABLE, Plan
from palm.spec.plan import plan as plan_training

DOES_NOT_FIT = 1
_FROM_RECIPE = default("the recipe's")


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What `palm plan` is asked for."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A preset: tiny, small, palm-8b, palm-62b, palm-540b, palm_jax.palm, …"""
    architecture: Annotated[Architecture, default("jax")] = None
    """The original that a preset follows where it leaves the architecture open."""
    devices: Annotated[int | None, default("the mesh's, or 1")] = None
    """How many devices there are. Without --mesh, one is proposed."""
    mesh: Annotated[str | None, Optional] = None
    """The mesh of devices, such as data=4,model=2."""
    memory: Annotated[str | None, Optional] = None
    """What each device has, such as 80GiB."""
    recipe: str = "paper"
    """The recipe of the training: paper, bytes or adamw."""
    batch: Annotated[int | None, default("the recipe's largest")] = None
    """Sequences in a step."""
    length: Annotated[int | None, _FROM_RECIPE] = None
    """Tokens predicted in each sequence."""
    accumulate: Annotated[int | None, _FROM_RECIPE] = None
    """Number of micro-batches in a step."""
    precision: Annotated[DType | None, _FROM_RECIPE] = None
    """Data type of the model's computation."""
    remat: Annotated[Remat | None, _FROM_RECIPE, FlagConversionOff] = None
    """What the backward pass computes again: True blocks, feedforward that part of them, False nothing."""
    json: bool = False
    """Print the plan as JSON."""
    changes: ModelFlags
    """These change single fields of the preset."""


def plan(request: Request[PlanRequest]) -> int:
    """Say whether a training fits: memory of each device by what it is for, and a mesh.

    By formulas, without a compiler, for any hardware. Exit status 1: it does not fit.
    """
    fields = ("batch", "length", "accumulate", "precision", "remat")
    changes = {name: getattr(request, name) for name in fields if getattr(request, name) is not None}
    found = plan_training(
        preset(request.model, **given(request.changes)),
        devices=request.devices,
        mesh=request.mesh,
        memory=request.memory,
        recipe=request.recipe,
        architecture=request.architecture or "jax",
        **changes,
    )
    if request.json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        _show(request.model, found)
    return DOES_NOT_FIT if found.fits is False else 0


def _show(name: str, found: Plan) -> None:
    console = Terminal()
    console.print(_headline(name, found), highlight=False, markup=False)
    table = Table(box=None, padding=(0, 2), show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", overflow="fold")
    table.add_row()
    for words, size in _amounts(found).items():
        table.add_row(Text(words), Text(in_units(size)))
    console.print(table, highlight=False)
    sections = {
        "why this mesh": found.reasons,
        "left whole": found.left_whole,
        "what would fit": found.remedies,
    }
    for title, lines in sections.items():
        if lines:
            console.print(f"\n{title}", highlight=False)
        for line in lines:
            console.print(f"  {line}", highlight=False, markup=False)


def _headline(name: str, found: Plan) -> str:
    recipe = found.recipe
    what = f"{name} on {found.mesh.size:,} devices, {found.mesh}: {in_units(found.bytes_per_device)} a device"
    if found.memory is not None:
        usable = in_units(int(USABLE * found.memory))
        what += f"; {'fits' if found.fits else 'does not fit'} {usable}, {USABLE:.0%} of its memory"
    batch = f"{largest_batch(recipe):,} × {recipe.length:,} tokens"
    return f"{what}\n{batch}, {recipe.precision}, remat={recipe.remat}, accumulate={recipe.accumulate}"


def _amounts(found: Plan) -> dict[str, Any]:
    """Each line of the table."""
    of, computing = found.footprint, found.recipe.precision
    return {
        f"weights, {found.dtype}": of.weights,
        "two moments": of.moments,
        "gradients": of.gradients,
        f"copies in {computing}": of.copies,
        "stored for the backward pass": of.stored,
        "one block backwards, or": of.block,
        "output layer and loss": of.logits,
        "a step at its worst moment": of.total,
        "to generate: keys and values of the batch": found.cache_bytes,
    }
