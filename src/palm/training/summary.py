"""What there is to know of a run without loading it: `palm info RUN`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palm.checkpoint.locate import best_of
from palm.config import Backend, PaLMConfig
from palm.recipes import Recipe
from palm.training.run_folder import Run
from palm.training.runs import start_in_words
from palm.training.trained import Entry


@dataclass(frozen=True)
class RunSummary:
    """The state of a run.

    `step` of `recipe.steps` are made, which took `tokens` tokens; `first` and `last` are the first and the
    last line of the log, None before the first step. `val_losses` are all that were measured, by step, in
    nats; `checkpoints` the steps of the checkpoints that exist, of which `best` has the lowest validation
    loss. `tokenizer` is a file's name or "bytes"; None for ids that came without one. `start` is what it
    began from, in words, and `origin` where that comes from; None and empty for weights of the seed, and for
    a run of an older version, which does not say. `turns`: after which step which framework went on.
    """

    path: Path
    config: PaLMConfig
    recipe: Recipe
    backend: Backend
    device: str | None
    attention: str
    data: str | None
    tokenizer: str | None
    start: str | None
    origin: dict[str, str]
    turns: list[tuple[int, Backend]]
    step: int
    tokens: int
    first: Entry | None
    last: Entry | None
    val_losses: dict[int, float]
    checkpoints: list[int]
    best: int | None


def summarise(path: Path) -> RunSummary:
    """The run in the folder `path`, as its settings, its log and its checkpoints tell.

    Raises `RunError` if it is no run or its settings are damaged.
    """
    run = Run(path)
    settings: dict[str, Any] = run.settings()
    entries, found, tokenizer = run.entries(), run.checkpoints(), run.tokenizer()
    losses = {entry["step"]: entry["val_loss"] for entry in entries if "val_loss" in entry}
    return RunSummary(
        path=path,
        config=PaLMConfig.from_dict(settings["config"]),
        recipe=Recipe.from_dict(settings["recipe"]),
        backend=settings["backend"],
        device=settings["device"],
        attention=settings["attention"],
        data=settings["data"]["path"],
        tokenizer=None if tokenizer is None else tokenizer.name,
        start=start_in_words(settings["start"]) if "start" in settings else None,
        origin=settings.get("start", {}).get("origin", {}),
        turns=[(turn["after"], turn["backend"]) for turn in settings.get("turns", ())],
        step=int(entries[-1]["step"]) if entries else 0,
        tokens=int(entries[-1].get("tokens", 0)) if entries else 0,
        first=entries[0] if entries else None,
        last=entries[-1] if entries else None,
        val_losses={int(step): loss for step, loss in losses.items() if math.isfinite(loss)},
        checkpoints=list(found),
        best=best_of(found),
    )
