"""The weights and moments of a checkpoint, verified against its manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from palm.checkpoint.manifest import (
    CONFIG,
    IN_PIECES,
    MANIFEST,
    OPTIMIZER,
    TOKENIZERS,
    TRAINING,
    has_grids,
    key_of,
    read_tensors,
    read_verified,
    verify,
    verifying,
)
from palm.checkpoint.pieces import pieces_of, shapes_of
from palm.config import BACKENDS, PaLMConfig
from palm.errors import CheckpointError, ConfigError, WeightsError
from palm.files.objects import MalformedError, parse_object
from palm.files.schema import NATURAL, NUMBER, OBJECT, Optional, Record, check, one_of
from palm.files.tensors import empty, read_each
from palm.spec.boxes import Box
from palm.spec.parameters import check_array, check_names, numpy_dtype, parameters

_STEP = re.compile("step-[0-9]+")
_TRAINING = Record(
    {"step": NATURAL, "row": NATURAL, "rewinds": NATURAL, "spike": NATURAL},
    optional={
        "val_loss": Optional(NUMBER),
        "backend": one_of(*BACKENDS),
        "recipe": OBJECT,
    },
)


def read_fields(path: Path, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the checkpoint at `path` says of its run; None for a model without one. Raises `CheckpointError`.

    A folder that is called after a step must be called after its own: who trusts the name deletes by it.
    """
    if TRAINING not in manifest["files"]:
        return None
    file = path / TRAINING
    content = read_verified(file, manifest["files"][TRAINING])
    try:
        fields = parse_object(content)
        check(fields, _TRAINING)
    except MalformedError as error:
        raise CheckpointError(f"{file} must describe a run; {error}. Restore another copy.") from None
    name = path.absolute().name
    if _STEP.fullmatch(name) and name != f"step-{fields['step']:08d}":
        raise CheckpointError(
            f"{path} must be called after its step; got step={fields['step']}. Rename it to "
            f"step-{fields['step']:08d}."
        )
    return fields


def read_config(path: Path, manifest: Mapping[str, Any]) -> PaLMConfig:
    """The config of the checkpoint at `path`. Raises `CheckpointError`."""
    try:
        content = read_verified(path / CONFIG, manifest["files"].get(CONFIG))
        config = PaLMConfig.from_dict(parse_object(content))
        listed = sum(
            len(entry.get("tensors", entry.get("pieces", ())))
            for entry in ([manifest] if has_grids(manifest) else manifest["files"].values())
        )
        if config.depth > listed:  # before a table is made of so many blocks
            raise CheckpointError(
                f"{path} must hold {config.depth} blocks; got {listed} tensors. Save it again."
            )
        parameters(config)
    except (ConfigError, MalformedError) as error:
        raise CheckpointError(f"{path / CONFIG} must hold a resolved config; {error}") from None
    return config


def read_state(
    path: Path, manifest: Mapping[str, Any], *, with_moments: bool
) -> tuple[PaLMConfig, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The config, the weights and, if asked for, the moments of the checkpoint at `path`.

    Each file that holds any of them is verified as a whole. Raises `CheckpointError`.
    """
    config = read_config(path, manifest)
    table = parameters(config)
    for name in TOKENIZERS:
        if name in manifest["files"]:
            verify(path / name, manifest["files"][name])
    if manifest["version"] == IN_PIECES:
        wanted = shapes_of(config, with_moments=with_moments)
        moments = _joined(path, manifest, config, wanted)
        weights = {name: moments.pop(name) for name in table}
    else:
        weights = _whole(path, manifest, is_moments=False)
        moments = _whole(path, manifest, is_moments=True) if with_moments else {}
    try:
        check_names(config, weights, source=str(path))
    except WeightsError as error:
        raise CheckpointError(str(error)) from error
    for name, parameter in table.items():
        try:
            check_array(parameter, weights[name], source="")
        except WeightsError as error:
            file = path / _file_of(path, manifest, config, name, weights[name])
            raise CheckpointError(f"{file}{error}") from error
    return config, weights, moments


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


def _joined(
    path: Path, manifest: Mapping[str, Any], config: PaLMConfig, wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The wanted tensors, joined from their pieces. Needs them, and one piece more."""
    listed: dict[str, dict[str, tuple[str, Box]]] = {}
    checksums: dict[str, dict[str, int]] = {}
    for name, pieces in pieces_of(path, manifest, config).items():
        for piece in pieces:
            key = key_of(name, piece.box.start)
            listed.setdefault(piece.file, {})[key] = name, piece.box
            checksums.setdefault(piece.file, {})[key] = piece.checksum
    dtype = numpy_dtype(manifest["dtype"])
    arrays: dict[str, np.ndarray] = {}
    for file, boxes in listed.items():
        with verifying(path / file, {**manifest["files"][file], "tensors": checksums[file]}) as reader:
            for key, array in read_each(reader):
                name, box = boxes.pop(key, ("", Box((), ())))
                if (array.dtype, array.shape) != (dtype, box.shape):
                    raise MalformedError(f"it must hold the pieces that {MANIFEST} lists; {key} does not fit")
                if name in wanted:
                    if name not in arrays:
                        arrays[name] = empty(wanted[name], dtype)
                    arrays[name][box.within(Box((0,) * array.ndim, wanted[name]))] = array
            if boxes:
                raise MalformedError(
                    f"it must hold the pieces that {MANIFEST} lists; {min(boxes)} does not fit"
                )
    return arrays


def _file_of(
    path: Path, manifest: Mapping[str, Any], config: PaLMConfig, name: str, array: np.ndarray
) -> str:
    """The file of a weight that does not fit; of one in pieces, the file of the first that is not finite."""
    if manifest["version"] != IN_PIECES:
        files = manifest["files"].items()
        return next((file for file, entry in files if name in entry.get("tensors", ())), MANIFEST)
    whole = Box((0,) * array.ndim, array.shape)
    return next(
        piece.file
        for piece in pieces_of(path, manifest, config)[name]
        if not np.isfinite(array[piece.box.within(whole)]).all()
    )
