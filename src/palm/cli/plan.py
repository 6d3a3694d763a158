"""The command that says whether a training fits: `palm plan`. A thin layer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from rich.table import Table
from rich.text import Text
from tyro.conf import FlagConversionOff, Positional, arg

from palm.cli.display import Terminal
from palm.cli.flags import Architecture, ModelFlags, Optional, Request, default, given
from palm.config import DType
from palm.memory import in_units
from palm.presets import preset
from palm.recipes import Remat
from palm.spec.compiler import Compiled
from palm.spec.footprint import largest_batch
from palm.spec.plan import USABLE, Plan
from palm.spec.plan import plan as plan_training

DOES_NOT_FIT = 1
# Bytes, or words, by what they are.
Rows = Mapping[str, int | str]
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
    topology: Annotated[str | None, Optional] = None
    """Ask the TPU's own compiler, for chips such as v4:8x16x16. Needs --mesh, and pip install "jax[tpu]"."""
    timeout: float = 1800.0
    """Seconds that the compiler may take."""
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

    By formulas for any hardware, or with --topology by the TPU's own compiler, on a machine without a TPU.
    Exit status 1: it does not fit.
    """
    fields = ("batch", "length", "accumulate", "precision", "remat")
    changes = {name: getattr(request, name) for name in fields if getattr(request, name) is not None}
    found = plan_training(
        preset(request.model, **given(request.changes)),
        devices=request.devices,
        mesh=request.mesh,
        memory=request.memory,
        topology=request.topology,
        timeout=request.timeout,
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
    tables = [_parts(found), _moved(found)] if found.compiled is None else [*_compiled(found.compiled, found)]
    for rows in tables:
        table = Table(box=None, padding=(0, 2), show_header=False)
        table.add_column(overflow="fold")
        table.add_column(justify="right", overflow="fold")
        table.add_row()
        for words, told in rows.items():
            table.add_row(Text(words), Text(told if isinstance(told, str) else in_units(told)))
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
    """What it is, what it takes, and whether that fits."""
    recipe, compiled = found.recipe, found.compiled
    what = f"{name} on {found.mesh.size:,} devices, {found.mesh}: {in_units(found.bytes_per_device)} a device"
    verdict = "fits" if found.fits else "does not fit"
    if compiled is not None:
        what += f"; {verdict} {in_units(compiled.memory)}, compiled for {compiled.topology}"
    elif found.memory is not None:
        what += f"; {verdict} {in_units(int(USABLE * found.memory))}, {USABLE:.0%} of its memory"
    batch = f"{largest_batch(recipe):,} × {recipe.length:,} tokens"
    return f"{what}\n{batch}, {recipe.precision}, remat={recipe.remat}, accumulate={recipe.accumulate}"


def _parts(found: Plan) -> Rows:
    """What each device holds, by the formulas."""
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


def _moved(found: Plan) -> Rows:
    """What each device must receive; nothing on one device."""
    of = found.traffic
    moved = {"gathered in a step, by each device": of.gathered, "reduced in a step": of.reduced}
    return moved if found.mesh.size > 1 else {}


def _compiled(of: Compiled, found: Plan) -> Iterator[Rows]:
    """What each chip holds and receives, by the compiler, and next to it by the formulas."""
    yield {**of.sizes, "a step": of.total, "by the formulas": found.footprint.total}
    if of.collectives:
        yield {
            **{f"{kind}, {one.count:,} a step": one.bytes for kind, one in sorted(of.collectives.items())},
            "gathered, by the formulas": found.traffic.gathered,
            "reduced, by the formulas": found.traffic.reduced,
        }
    yield {"compiled in": f"{of.seconds:.0f} s"}
