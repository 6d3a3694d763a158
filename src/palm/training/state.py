"""A run's state in its checkpoints: of a model on a mesh each process writes and reads its own pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palm.backends import config_of, wing, wing_of
from palm.checkpoint.boxes import Boxes
from palm.checkpoint.checkpoint import load_onto
from palm.checkpoint.progress import Progress, check_is_run, load_progress
from palm.checkpoint.team import save_pieces, team_of
from palm.checkpoint.tokenizer import kept_file
from palm.config import Backend, PaLMConfig
from palm.data.tokenizer import Tokenizer
from palm.models import from_numpy, to_numpy
from palm.recipes import Recipe
from palm.training.run_files import check_own
from palm.training.run_folder import Run
from palm.wings import TrainerProtocol


def write_state(
    folder: Run,
    step: int,
    trainer: TrainerProtocol[Any],
    fields: dict[str, Any],
    tokenizer: Tokenizer | None,
) -> None:
    """Write the checkpoint of a step; of a mesh all processes must come. Raises what `palm.save` raises."""
    model, processes, file = trainer.model, wing_of(trainer.model), kept_file(tokenizer)
    if processes.mesh_of_model(model).size > 1:
        path, team = folder.path_of(step), team_of(processes)
        save_pieces(config_of(model), trainer.pieces(), path, team, fields=fields, tokenizer=file)
    else:
        folder.save(step, config_of(model), to_numpy(model), Progress(fields, trainer.moments()), file)


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
