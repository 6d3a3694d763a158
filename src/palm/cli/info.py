"""The command that describes a model or a run: `palm info`. A thin layer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg

from palm.checkpoint.locate import BEST, LAST
from palm.checkpoint.progress import summarise
from palm.cli.display import Terminal
from palm.cli.flags import Architecture, Request
from palm.config import BACKENDS, Backend, PaLMConfig
from palm.errors import ConfigError
from palm.files.names import visible
from palm.memory import in_units
from palm.presets import PRESETS
from palm.presets import preset as find_preset
from palm.spec.parameters import frozen, parameters
from palm.spec.sizes import describe
from palm.training.run_folder import Run
from palm.training.summary import RunSummary
from palm.training.summary import summarise as summarise_run


@dataclass(frozen=True, kw_only=True)
class InfoRequest:
    """What `palm info` is asked for."""

    model: Positional[Annotated[str, arg(metavar="[MODEL]")]] = "small"
    """A run, a checkpoint, or a preset: tiny, small, palm-8b, palm-62b, palm-540b, palm_jax.palm, …"""
    architecture: Architecture = None
    """The original that a preset follows where it leaves the architecture open."""
    length: int = 2048
    """Sequence length for the FLOPs of attention."""


def info(request: Request[InfoRequest]) -> int:
    """Describe a preset, a run or a checkpoint: config, parameters by kind, FLOPs per token and memory.

    Of a run it also shows how far it is, its losses and its checkpoints.
    """
    if request.model in PRESETS or not _is_path(request.model):
        told, config = _preset(request.model, request.architecture or "torch")
    else:
        told, config = _read(Path(request.model), request.architecture)
    sizes = describe(config, request.length)
    amounts = {
        f"forward FLOPs per token at {request.length}": f"{sizes.forward_flops:.4g}",
        "training FLOPs per token": f"{sizes.training_flops:.4g}",
        **{f"weights in {dtype}": in_units(size) for dtype, size in sizes.weight_bytes.items()},
        "training state, float32, two moments": in_units(sizes.training_bytes),
        "KV cache of one position, bfloat16": in_units(sizes.cache_bytes),
    }
    counts = {**sizes.parameters, "parameters": sizes.total}
    sections = [told, config.to_dict(), {kind: f"{count:,}" for kind, count in counts.items()}, amounts]
    terminal = Terminal()
    for i, section in enumerate(filter(None, sections)):
        terminal.print(*([""] if i else []), _table(section), sep="\n", highlight=False)
    return 0


def _table(section: Mapping[str, Any]) -> Table:
    """Names, and values right behind them: each section has its own width. Numbers end in one place."""
    are_numbers = all(str(value).replace(",", "").isdecimal() for value in section.values())
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right" if are_numbers else "left", overflow="fold")
    for name, value in section.items():
        table.add_row(name, Text(visible(str(value))))
    return table


def _preset(name: str, architecture: Backend) -> tuple[dict[str, Any], PaLMConfig]:
    """The config of a preset as the original of `architecture`, and a line about that if it matters."""
    try:
        config = find_preset(name)
    except ConfigError as error:
        raise ConfigError(f"{error} There is no folder of that name either.") from None
    if config.is_resolved:
        return {}, config
    other = next(backend for backend in BACKENDS if backend != architecture)
    told = f"of {architecture}; it depends on the backend (--architecture {other})"
    return {"architecture": told}, config.resolve(architecture)


def _is_path(text: str) -> bool:
    return os.sep in text or os.path.lexists(text) or Path(text).name in (LAST, BEST)


def _read(given: Path, architecture: Backend | None) -> tuple[dict[str, Any], PaLMConfig]:
    """How far the training of a checkpoint is, and its config; its weights are not read."""
    if architecture is not None:
        raise ConfigError(
            "--architecture must not be given with a checkpoint, which has its own architecture; "
            f"got {given}. Leave it out."
        )
    found = summarise(given)
    told: dict[str, Any] = {"checkpoint": found.path, "dtype": found.dtype, **found.origin}
    folder = found.path.resolve().parent
    if found.fields is not None and Run(folder).is_run:
        told |= _progress(summarise_run(folder), found.fields)
    return told, found.config


def _progress(run: RunSummary, training: Mapping[str, Any]) -> dict[str, Any]:
    """Where the run was at the checkpoint, and where it is now."""
    told = {"step": f"{training['step']} of {run.recipe.steps}"}
    if training["step"] in run.val_losses:
        told["validation"] = f"{run.val_losses[training['step']]:.4f} nats"
    if run.first is not None and run.last is not None:
        losses = f"{run.first['loss']:.4f} → {run.last['loss']:.4f} nats"
        told["training loss"] = f"{losses}, steps {run.first['step']} → {run.last['step']}"
    return (
        told
        | _recipe(run)
        | {
            "tokens": f"{run.tokens:,}",
            "checkpoints": ", ".join(
                f"{step} (best)" if step == run.best else str(step) for step in run.checkpoints
            ),
            "trained in": _frameworks(run, training["step"], training.get("backend", run.backend)),
            "data": run.data or "an array",
            "tokenizer": run.tokenizer or "token ids; the run has no tokenizer",
        }
    )


def _recipe(run: RunSummary) -> dict[str, str]:
    """What was trained, and how."""
    recipe = run.recipe
    ramp = "".join(f", {size} from step {step}" for step, size in recipe.ramp)
    told = {
        "started from": run.start
        or ("weights of the seed" if run.turns else "weights of the seed, or not recorded"),
        **({"origin": " ".join(run.origin.values())} if run.origin else {}),
        "recipe": f"{recipe.optimizer}, batch {recipe.batch}{ramp}, length {recipe.length}",
        "precision": recipe.precision,
        "learning rate": f"{recipe.learning_rate:g}, {recipe.schedule}, warmup {recipe.warmup}",
        "seed": str(recipe.seed),
    }
    if recipe.freeze is not None:
        table = parameters(run.config)
        count = sum(table[name].size for name in frozen(run.config, recipe.freeze))
        told["frozen"] = f"{recipe.freeze}: {count:,} weights"
    return told | ({} if recipe.pack is None else {"pack": f"documents end with id {recipe.pack}"})


def _frameworks(run: RunSummary, step: int, backend: str) -> str:
    """Which framework made which steps of those up to the checkpoint; the last one, if no more is known."""
    turns = [turn for turn in run.turns if turn[0] < step]
    if len(turns) < 2:
        return backend
    ends = [*(after for after, _ in turns[1:]), step]
    told = [f"{name} (steps {after + 1}–{end})" for (after, name), end in zip(turns, ends, strict=True)]
    return ", ".join(told)
