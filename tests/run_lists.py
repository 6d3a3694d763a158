"""Runs with made-up losses, for the tests of what lists and draws several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from run_settings import CONTENT

from palm.recipes import Recipe
from palm.training.run_folder import Run


def make_run(path: Path, losses: list[float], *, every: int = 2, settings: Any = None, **recipe: Any) -> Run:
    """A run with these losses; every second step has a validation loss that is 1 higher."""
    run = Run(path)
    path.mkdir(parents=True)
    told = Recipe(**{"steps": 10, "batch": 2, "length": 4, **recipe}).to_dict()
    run.write_settings({**CONTENT, "recipe": told, **(settings or {})})
    lines = []
    for step, loss in enumerate(losses, 1):
        more = {} if step % every else {"val_loss": loss + 1}
        lines.append(json.dumps({"step": step, "loss": loss, "tokens": 8 * step, **more}) + "\n")
    (path / "metrics.jsonl").write_text("".join(lines))
    return run
