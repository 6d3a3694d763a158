"""A run's state is read from its checkpoints: onto a mesh each process reads its own pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palm.backends import wing
from palm.checkpoint.boxes import Boxes
from palm.checkpoint.checkpoint import load_onto
from palm.checkpoint.progress import check_is_run, load_progress
from palm.config import Backend, PaLMConfig
from palm.models import from_numpy
from palm.recipes import Recipe
from palm.training.run_files import check_own
from palm.wings import TrainerProtocol


def read_state(
    path: Path, config: PaLMConfig, recipe: Recipe, backend: Backend, device: Any, attention: str
) -> tuple[dict[str, Any], TrainerProtocol[Any]]:
    """What the checkpoint at `path` says of its run, which has this config and recipe, and its trainer.

    One process verifies the whole checkpoint first. Of several each reads what it needs, and verifies that.
    Raises `CheckpointError`, and `RunError` for the checkpoint of another run.
    """
    if wing(backend).several():
        boxes = Boxes(path)
        fields = check_is_run(path, boxes.fields)
        check_own(path, boxes.config, fields, config, recipe)
        model: Any = load_onto(boxes, device, backend, dtype=None, attention=attention)
        trainer = wing(backend).Trainer(model, recipe)
        trainer.set_moments(boxes.tensors)
        return fields, trainer
    found, arrays, progress = load_progress(path)
    check_own(path, found, progress.fields, config, recipe)
    model = from_numpy(found, arrays, backend=backend, device=device, attention=attention)
    trainer = wing(backend).Trainer(model, recipe)
    trainer.set_moments(progress.moments)
    return progress.fields, trainer
