"""What run.json and the logs of a run can hold, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palm.checkpoint.manifest import METRICS, RUN_SETTINGS
from palm.config import BACKENDS, PaLMConfig
from palm.errors import ConfigError, RunError
from palm.fields import from_fields
from palm.files.objects import MalformedError
from palm.files.read import read_file
from palm.files.schema import (
    NATURAL,
    NUMBER,
    OBJECT,
    PRINTABLE,
    SHA256,
    TEXT,
    ByName,
    Items,
    Optional,
    Record,
    check,
    complete_lines,
    one_of,
)
from palm.files.sealed import check_format, read_sealed
from palm.files.write import what_lacks
from palm.recipes import Recipe
from palm.training.cadence import Cadence

FORMAT, VERSION = "palm-run", 1
SAMPLES = "samples.jsonl"
_SETTINGS = Record(
    {
        "version": NATURAL,
        "config": OBJECT,
        "recipe": OBJECT,
        "cadence": OBJECT,
        "data": Record({"path": Optional(TEXT), "digest": TEXT}),
        "backend": one_of(*BACKENDS),
        "device": Optional(TEXT),
        "attention": TEXT,
    },
    {  # which runs of older versions do not have
        "start": Record(
            {"checkpoint": Optional(TEXT), "weights": SHA256}, {"origin": ByName(TEXT, PRINTABLE)}
        ),
        "turns": Items(Record({"after": NATURAL, "backend": one_of(*BACKENDS)})),
    },
)
_LINES = {
    METRICS: Record({"step": NATURAL, "loss": NUMBER}, others=NUMBER),
    SAMPLES: Record({"step": NATURAL, "text": TEXT}),
}
_MOST_LOG_BYTES = 1 << 32


def check_own(
    path: Path, config: PaLMConfig, fields: Mapping[str, Any], run: PaLMConfig, recipe: Recipe
) -> None:
    """Raise `RunError` unless the checkpoint at `path`, of this config and `fields`, is one of the run.

    Its config must be the run's, and its recipe too but for the number of steps.
    """
    of_run = {**run.to_dict(), **recipe.to_dict()}
    of_checkpoint = {**config.to_dict(), **fields.get("recipe", {})}
    for name, value in of_run.items():
        if name != "steps" and of_checkpoint.get(name, value) != value:
            raise RunError(
                f"{path} must be a checkpoint of its run; got {name}={of_checkpoint[name]!r:.80}, where "
                f"{RUN_SETTINGS} has {value!r:.80}. Restore the one that belongs here."
            )


def read_settings(run: Path) -> dict[str, Any]:
    """The contents of the run.json of a run. Raises `RunError` if it is absent or not what palm wrote."""
    file = run / RUN_SETTINGS
    try:
        content, is_intact = read_sealed(file)
    except OSError as error:
        raise RunError(
            "run must be a folder that palm train wrote; got run="
            f"{what_lacks(run, RUN_SETTINGS, error)}. Pass the folder that has {RUN_SETTINGS} in it."
        ) from None
    if content is None or not is_intact:
        raise RunError(f"{file} must be as it was written; its checksum differs. Restore another copy.")
    check_format(file, content, FORMAT, (VERSION,), RunError)
    try:
        check(content, _SETTINGS)
        PaLMConfig.from_dict(content["config"])
        Recipe.from_dict(content["recipe"])
        from_fields(Cadence, content["cadence"], "a cadence")
    except (MalformedError, ConfigError) as error:
        raise RunError(f"{file} must describe a run; {error}. Restore another copy.") from None
    return content


def read_log(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a log, METRICS or SAMPLES, that are its own; none if there is no such file.

    Raises `RunError` if it cannot be read.
    """
    try:
        return [*complete_lines(read_file(path, _MOST_LOG_BYTES), _LINES[path.name])]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(
            f"run must have a log that can be read; got {path}: {error.strerror}. Remove what is there."
        ) from None
