"""The weights and moments of a checkpoint, verified against its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from palm.checkpoint.about import read_config
from palm.checkpoint.boxes import Boxes
from palm.checkpoint.manifest import (
    CONFIG,
    IN_PIECES,
    OPTIMIZER,
    TOKENIZERS,
    TRAINING,
    read_tensors,
    verify,
)
from palm.config import PaLMConfig
from palm.errors import CheckpointError, WeightsError
from palm.spec.parameters import check_array, check_names, parameters


def read_state(
    path: Path, manifest: Mapping[str, Any], *, with_moments: bool
) -> tuple[PaLMConfig, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The config, the weights and, if asked for, the moments of the checkpoint at `path`.

    All that the manifest lists is verified, asked for or not. Raises `CheckpointError`.
    """
    for name in TOKENIZERS:
        if name in manifest["files"]:
            verify(path / name, manifest["files"][name])
    if manifest["version"] == IN_PIECES:
        return _in_pieces(Boxes(path, manifest), with_moments=with_moments)
    config = read_config(path, manifest)
    table = parameters(config)
    weights = _whole(path, manifest, is_moments=False)
    moments = _whole(path, manifest, is_moments=True) if with_moments else {}
    for file, entry in {} if with_moments else manifest["files"].items():
        if file.startswith(OPTIMIZER):
            verify(path / file, entry)
    try:
        check_names(config, weights, source=str(path))
    except WeightsError as error:
        raise CheckpointError(str(error)) from error
    for name, parameter in table.items():
        try:
            check_array(parameter, weights[name], source="")
        except WeightsError as error:
            files = manifest["files"].items()
            file = next(file for file, entry in files if name in entry.get("tensors", ()))
            raise CheckpointError(f"{path / file}{error}") from error
    return config, weights, moments


def _in_pieces(
    boxes: Boxes, *, with_moments: bool
) -> tuple[PaLMConfig, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """`read_state` of a checkpoint in pieces."""
    table = parameters(boxes.config)
    moments = [name for name in boxes.shapes if name not in table]
    for name in () if with_moments else moments:
        boxes.verify(name)
    weights = {name: boxes.whole(name) for name in table}
    return boxes.config, weights, {name: boxes.whole(name) for name in moments if with_moments}


def _whole(path: Path, manifest: Mapping[str, Any], *, is_moments: bool) -> dict[str, np.ndarray]:
    """The tensors of all files of moments, or of all others."""
    arrays: dict[str, np.ndarray] = {}
    for file, entry in manifest["files"].items():
        if file in (CONFIG, TRAINING, *TOKENIZERS) or file.startswith(OPTIMIZER) != is_moments:
            continue
        for name, array in read_tensors(path / file, entry).items():
            where = f"{path / file}: {name}"
            if name in arrays:
                raise CheckpointError(f"{where} must occur once; got it in two files. Save it again.")
            if array.dtype.name != manifest["dtype"]:
                raise CheckpointError(
                    f"{where} must have dtype {manifest['dtype']}; got dtype={array.dtype}. Save it again."
                )
            arrays[name] = array
    return arrays
