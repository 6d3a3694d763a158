"""Checkpoints: a directory of safetensors and JSON, verified on the way in, committed atomically.

    DIR/config.json                          the resolved config
    DIR/weights-00001-of-00002.safetensors   tensors by canonical name, in canonical layout
    DIR/training.json                        of a run in progress: step, recipe, data cursor (palm.training)
    DIR/optimizer-*.safetensors              of a run in progress: its moments, first.NAME and second.NAME
    DIR/tokenizer.json or tokenizer.model    the tokenizer's file, if the model has one
    DIR/manifest.json                        format, version, dtype; of each file its size and SHA-256, of
                                             each tensor its file and CRC-32; and the SHA-256 of itself

The format knows no framework: either backend loads what the other saved, bit for bit. safetensors itself
notices neither flipped bits nor duplicate names and does not fsync; the manifest and `save` do.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from palm.backends import check_installed, config_of
from palm.checkpoint.locate import checkpoint_path
from palm.checkpoint.manifest import (
    CONFIG,
    FORMAT,
    MANIFEST,
    OPTIMIZER,
    TRAINING,
    VERSION,
    WEIGHTS,
    WITH_TOKENIZER,
    fingerprint,
    read_manifest,
    verify,
)
from palm.checkpoint.progress import Progress, check_moments
from palm.checkpoint.read import read_fields, read_weights
from palm.checkpoint.tokenizer import checkpoint_tokenizer, kept_file
from palm.config import Backend, DType, PaLMConfig
from palm.data.remembered import remember_tokenizer
from palm.data.tokenizer import load_tokenizer
from palm.data.tokenizer_file import FileTokenizer
from palm.errors import CheckpointError
from palm.files.hidden import recover
from palm.files.sealed import sealed
from palm.files.write import new_folder, put_in_place, remedy, write_file, write_tensors
from palm.models import common_dtype, from_numpy, to_numpy, tokenizer_of
from palm.spec.parameters import check_array, check_names, parameters

if TYPE_CHECKING:
    from palm.backends import JaxModel, Model, TorchModel

MAX_FILE_BYTES = 2 << 30


def save(model: Any, path: str | os.PathLike[str], *, overwrite: bool = False, tokenizer: Any = None) -> Path:
    """Write a model to the directory `path`, complete or not at all.

    Everything goes to a temporary sibling, is fsynced, and takes its name by one rename. An older checkpoint
    exchanges its name with it in one step on Linux, and is deleted after that; elsewhere there is a moment
    without either, after which the next `load` or `save` finds the older one. Raises `CheckpointError` if
    `path` exists (unless it is a checkpoint and `overwrite`) or cannot be written,
    `WeightsError` if a weight is not finite: a checkpoint that cannot be loaded is never written.
    """
    file = kept_file(tokenizer_of(model) if tokenizer is None else load_tokenizer(tokenizer))
    return save_arrays(config_of(model), to_numpy(model), path, overwrite=overwrite, tokenizer=file)


def save_arrays(
    config: PaLMConfig,
    arrays: Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    tokenizer: FileTokenizer | None = None,
) -> Path:
    """`save` for weights that are NumPy arrays already, and of a run in progress if that is given."""
    path = Path(path)
    if not path.name or "\0" in path.name:
        raise CheckpointError(f"path must end in a name of its own; got path={path}. Choose another.")
    recover(path)
    _check_free(path, overwrite)
    check_names(config, arrays)
    for name, parameter in parameters(config).items():
        check_array(parameter, arrays[name])
    if progress is not None:
        check_moments(config, progress.moments, common_dtype(arrays), "moments")
    try:
        with new_folder(path) as folder:
            _write_files(config, arrays, progress, tokenizer, folder)
            _check_free(path, overwrite)
            put_in_place(folder, path)
    except OSError as error:
        raise CheckpointError(f"path must be writable; got path={path}: {error}. {remedy(error)}") from error
    return path


def _check_free(path: Path, overwrite: bool) -> None:
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise CheckpointError(f"path must not exist yet; got path={path}. Remove it or pass overwrite=True.")
    if not os.path.isfile(path / MANIFEST):
        raise CheckpointError(
            f"path must be a checkpoint to be overwritten; got path={path} without {MANIFEST}. "
            "Remove it first."
        )


@overload
def load(
    path: str | os.PathLike[str],
    *,
    backend: Literal["torch"],
    dtype: DType | None = ...,
    device: Any = ...,
    attention: str = ...,
) -> TorchModel: ...


@overload
def load(
    path: str | os.PathLike[str],
    *,
    backend: Literal["jax"],
    dtype: DType | None = ...,
    device: Any = ...,
    attention: str = ...,
) -> JaxModel: ...


@overload
def load(
    path: str | os.PathLike[str],
    *,
    backend: Backend,
    dtype: DType | None = ...,
    device: Any = ...,
    attention: str = ...,
) -> Model: ...


def load(
    path: str | os.PathLike[str],
    *,
    backend: Backend,
    dtype: DType | None = None,
    device: Any = None,
    attention: str = "auto",
) -> Model:
    """The model saved at `path`, in `backend`; bitwise, unless `dtype` asks for another precision.

    `path` is a checkpoint or a run: `RUN` is its newest checkpoint, `RUN/best` the one of the lowest
    validation loss. A tokenizer that is in it is the model's from then on (`palm.tokenizer_of`).

    The whole checkpoint is verified first. Raises `CheckpointError` naming the file, and the tensor where
    there is one, for anything missing, unknown, duplicated, mis-shaped, mis-typed, altered or cut short;
    and what `palm.build` raises.
    """
    check_installed(backend)
    path = checkpoint_path(path)
    config, arrays = load_arrays(path)
    model = from_numpy(config, arrays, backend=backend, dtype=dtype, device=device, attention=attention)
    remember_tokenizer(model, checkpoint_tokenizer(path))
    return model


def load_arrays(path: str | os.PathLike[str]) -> tuple[PaLMConfig, dict[str, np.ndarray]]:
    """`load` without a framework: the resolved config and the verified weights."""
    path = checkpoint_path(path)
    manifest = read_manifest(path)
    for file, entry in manifest["files"].items():
        if file.startswith(OPTIMIZER):
            verify(path / file, entry)
    read_fields(path, manifest)
    return read_weights(path, manifest)


def _write_files(
    config: PaLMConfig,
    arrays: Mapping[str, np.ndarray],
    progress: Progress | None,
    tokenizer: FileTokenizer | None,
    folder: Path,
) -> None:
    write_file(folder / CONFIG, config.to_json().encode())
    files = {CONFIG: fingerprint(folder / CONFIG)}
    files |= _write_tensors({name: arrays[name] for name in parameters(config)}, WEIGHTS, folder)
    if progress is not None:
        write_file(folder / TRAINING, (json.dumps(progress.fields, indent=1) + "\n").encode())
        files[TRAINING] = fingerprint(folder / TRAINING)
        files |= _write_tensors(progress.moments, OPTIMIZER, folder)
    if tokenizer is not None:
        write_file(folder / tokenizer.file, tokenizer.content)
        files[tokenizer.file] = fingerprint(folder / tokenizer.file)
    version = VERSION if tokenizer is None else WITH_TOKENIZER
    manifest = {"format": FORMAT, "version": version, "dtype": common_dtype(arrays), "files": files}
    write_file(folder / MANIFEST, sealed(manifest).encode())


def _write_tensors(arrays: Mapping[str, np.ndarray], prefix: str, folder: Path) -> dict[str, dict[str, Any]]:
    files = {}
    groups = list(_groups(arrays))
    for number, group in enumerate(groups, 1):
        file = folder / f"{prefix}{number:05d}-of-{len(groups):05d}.safetensors"
        write_tensors(file, {name: arrays[name] for name in group})
        sums = {name: zlib.crc32(arrays[name].tobytes()) for name in group}
        files[file.name] = {**fingerprint(file), "tensors": sums}
    return files


def _groups(arrays: Mapping[str, np.ndarray]) -> Iterator[list[str]]:
    """Names in order, split so that no file much exceeds MAX_FILE_BYTES."""
    group: list[str] = []
    size = 0
    for name in arrays:
        if group and size + arrays[name].nbytes > MAX_FILE_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += arrays[name].nbytes
    yield group
