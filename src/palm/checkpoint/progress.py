"""What a checkpoint of a run in progress holds beside the weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from palm.checkpoint.about import read_config, read_fields
from palm.checkpoint.locate import checkpoint_path
from palm.checkpoint.manifest import TRAINING, read_manifest
from palm.checkpoint.pieces import MOMENTS
from palm.checkpoint.read import read_state
from palm.config import PaLMConfig
from palm.errors import CheckpointError, WeightsError
from palm.spec.parameters import check_array, parameters


@dataclass(frozen=True)
class Progress:
    """What a run in progress has beside its weights: `fields`, plain JSON values, and its moments."""

    fields: dict[str, Any]
    moments: dict[str, np.ndarray]


@dataclass(frozen=True)
class Summary:
    """A checkpoint without its arrays: its path, config and dtype, and the `fields` of a run in progress.

    `origin`: where imported weights come from; empty otherwise.
    """

    path: Path
    config: PaLMConfig
    dtype: str
    fields: dict[str, Any] | None
    origin: dict[str, str]


def summarise(path: str | os.PathLike[str]) -> Summary:
    """The checkpoint that `path` means; its arrays are not verified. Raises `CheckpointError`."""
    path = checkpoint_path(path)
    manifest = read_manifest(path)
    config, fields = read_config(path, manifest), read_fields(path, manifest)
    return Summary(path, config, manifest["dtype"], fields, manifest.get("origin", {}))


def load_progress(path: str | os.PathLike[str]) -> tuple[PaLMConfig, dict[str, np.ndarray], Progress]:
    """The config, the weights, and what a run needs to go on, all verified.

    Raises `CheckpointError` for a damaged checkpoint, and for one that holds a model and no run.
    """
    path = checkpoint_path(path)
    manifest = read_manifest(path)
    fields = read_fields(path, manifest)
    fields = check_is_run(path, fields)
    config, arrays, moments = read_state(path, manifest, with_moments=True)
    try:
        check_moments(config, moments, manifest["dtype"], str(path))
    except WeightsError as error:
        raise CheckpointError(str(error)) from error
    return config, arrays, Progress(fields, moments)


def check_is_run(path: Path, fields: dict[str, Any] | None) -> dict[str, Any]:
    """The `fields` of the checkpoint at `path`. Raises `CheckpointError` if it holds a model and no run."""
    if fields is None:
        raise CheckpointError(
            f"path must be a checkpoint of a run; got path={path}, a model without {TRAINING}. "
            "Start a new run from it."
        )
    return fields


def check_moments(config: PaLMConfig, moments: Mapping[str, np.ndarray], dtype: str, source: str) -> None:
    """Raise `WeightsError` unless there are two moments of each weight, of its shape and of `dtype`."""
    table = parameters(config)
    expected = {f"{moment}.{name}": row for moment in MOMENTS for name, row in table.items()}
    if moments.keys() != expected.keys():
        name = sorted(moments.keys() ^ expected.keys())[0]
        raise WeightsError(f"{source} must hold two moments of each weight; {name} does not fit. Save again.")
    for name, row in expected.items():
        where = f"{source}: {name.partition('.')[0]} moment"
        check_array(row, moments[name], source=where)
        if moments[name].dtype.name != dtype:
            raise WeightsError(
                f"{where}: {row.name} must have dtype {dtype}; got dtype={moments[name].dtype}."
            )
