"""Checkpoints: a directory of safetensors and JSON, verified on the way in, committed atomically.

    DIR/config.json                          the resolved config
    DIR/weights-00001-of-00002.safetensors   tensors by canonical name, in canonical layout
    DIR/training.json                        of a run in progress: step, recipe, data cursor (palm.training)
    DIR/optimizer-*.safetensors              of a run in progress: its moments, first.NAME and second.NAME
    DIR/tokenizer.json or tokenizer.model    the tokenizer's file, if the model has one
    DIR/manifest.json                        format, version, dtype; of each file its size and SHA-256, of
                                             each tensor its file and CRC-32; and the SHA-256 of itself

Several processes write pieces in place of whole tensors (palm.checkpoint.team), each a file of its own:

    DIR/pieces-00001-of-00004.safetensors    pieces of weights and moments, as NAME@START
    DIR/manifest.json                        of each of these files its size and the SHA-256 of its header;
                                             of each piece its file, tensor, start, shape and CRC-32, or of
                                             each tensor the grid that they form (palm.checkpoint.grids)

The format knows no framework: either backend loads what the other saved, bit for bit. safetensors itself
notices neither flipped bits nor duplicate names and does not fsync; the manifest and `save` do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from palm.backends import check_attention, check_installed, config_of, model_of, placed, wing, wing_of
from palm.checkpoint.about import check_free, free_path, read_fields, writable, write_about
from palm.checkpoint.boxes import Boxes
from palm.checkpoint.locate import checkpoint_path
from palm.checkpoint.manifest import (
    FORMAT,
    MANIFEST,
    OPTIMIZER,
    VERSION,
    WEIGHTS,
    WITH_TOKENIZER,
    read_manifest,
)
from palm.checkpoint.progress import Progress, check_moments
from palm.checkpoint.read import read_state
from palm.checkpoint.team import check_listable, save_pieces, team_of
from palm.checkpoint.tokenizer import checkpoint_tokenizer, kept_file
from palm.config import Backend, DType, PaLMConfig
from palm.data.remembered import remember_tokenizer
from palm.data.tokenizer import load_tokenizer
from palm.data.tokenizer_file import FileTokenizer
from palm.files.sealed import sealed
from palm.files.streamed import write_arrays
from palm.files.tensors import grouped
from palm.files.write import new_folder, put_in_place, write_file
from palm.models import common_dtype, from_numpy, to_numpy, tokenizer_of
from palm.spec.mesh import AnyMesh, mesh_of
from palm.spec.parameters import check_array, check_names, dtype_name, parameters

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

    A model on a mesh is saved in pieces, so that no process ever has a second copy of what it holds. All
    processes of the mesh must call this, with the same arguments.
    """
    file = kept_file(tokenizer_of(model) if tokenizer is None else load_tokenizer(tokenizer))
    processes, own = wing_of(model), model_of(model)
    mesh = processes.mesh_of_model(own)
    if mesh.size == 1:
        return save_arrays(config_of(model), to_numpy(model), path, overwrite=overwrite, tokenizer=file)
    check_listable(config_of(model), mesh, with_moments=False)
    processes.check_plain(processes.settled(own))
    pieces, team = processes.pieces(own), team_of(processes)
    return save_pieces(config_of(model), pieces, path, team, overwrite=overwrite, tokenizer=file)


def save_arrays(
    config: PaLMConfig,
    arrays: Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    tokenizer: FileTokenizer | None = None,
    origin: Mapping[str, str] | None = None,
) -> Path:
    """`save` for weights that are NumPy arrays already, and of a run in progress if that is given.

    `origin`, where imported weights come from, is kept in the manifest.
    """
    path = free_path(path, overwrite=overwrite)
    check_names(config, arrays)
    for name, parameter in parameters(config).items():
        check_array(parameter, arrays[name])
    if progress is not None:
        check_moments(config, progress.moments, common_dtype(arrays), "moments")
    with writable(path), new_folder(path) as folder:
        _write_files(config, arrays, progress, tokenizer, folder, origin)
        check_free(path, overwrite=overwrite)
        put_in_place(folder, path)
    return path


@overload
def load(
    path: str | os.PathLike[str],
    *,
    backend: Literal["torch"],
    dtype: DType | None = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str = ...,
) -> TorchModel: ...


@overload
def load(
    path: str | os.PathLike[str],
    *,
    backend: Literal["jax"],
    dtype: DType | None = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str = ...,
) -> JaxModel: ...


@overload
def load(
    path: str | os.PathLike[str],
    *,
    backend: Backend,
    dtype: DType | None = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str = ...,
) -> Model: ...


def load(
    path: str | os.PathLike[str],
    *,
    backend: Backend,
    dtype: DType | None = None,
    device: Any = None,
    mesh: AnyMesh = None,
    attention: str = "auto",
) -> Model:
    """The model saved at `path`, in `backend`; bitwise, unless `dtype` asks for another precision.

    `path` is a checkpoint or a run: `RUN` is its newest checkpoint, `RUN/best` the one of the lowest
    validation loss. A tokenizer that is in it is the model's from then on (`palm.tokenizer_of`).

    The whole checkpoint is verified first. Onto a mesh each process reads the pieces of its own devices, and
    what it reads is verified. Raises `CheckpointError` naming the file, and the tensor where
    there is one, for anything missing, unknown, duplicated, mis-shaped, mis-typed, altered or cut short;
    and what `palm.build` raises.
    """
    check_installed(backend)
    path = checkpoint_path(path)
    if mesh_of(mesh).size > 1:
        model = load_onto(
            Boxes(path), placed(backend, device, mesh), backend, dtype=dtype, attention=attention
        )
    else:
        config, arrays = load_arrays(path)
        model = from_numpy(config, arrays, backend=backend, dtype=dtype, device=device, attention=attention)
    remember_tokenizer(model, checkpoint_tokenizer(path))
    return model


def load_onto(boxes: Boxes, mesh: Any, backend: Backend, *, dtype: DType | None, attention: str) -> Model:
    """`load` onto a mesh of the framework's, of what each process needs alone."""
    check_attention(attention, backend)
    tensors = boxes.as_type(dtype or dtype_name(boxes.dtype))
    options: dict[str, Any] = {
        "dtype": dtype or dtype_name(boxes.dtype),
        "device": mesh,
        "attention": attention,
    }
    return wing(backend).from_arrays(boxes.config, lambda parameter: tensors[parameter.name], **options)


def load_arrays(path: str | os.PathLike[str]) -> tuple[PaLMConfig, dict[str, np.ndarray]]:
    """`load` without a framework: the resolved config and the verified weights."""
    path = checkpoint_path(path)
    manifest = read_manifest(path)
    read_fields(path, manifest)
    return read_state(path, manifest, with_moments=False)[:2]


def _write_files(
    config: PaLMConfig,
    arrays: Mapping[str, np.ndarray],
    progress: Progress | None,
    tokenizer: FileTokenizer | None,
    folder: Path,
    origin: Mapping[str, str] | None = None,
) -> None:
    files = write_about(config, None if progress is None else progress.fields, tokenizer, folder)
    files |= _write_tensors({name: arrays[name] for name in parameters(config)}, WEIGHTS, folder)
    if progress is not None:
        files |= _write_tensors(progress.moments, OPTIMIZER, folder)
    version = VERSION if tokenizer is None else WITH_TOKENIZER
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": version,
        "dtype": common_dtype(arrays),
        "files": files,
    }
    if origin is not None:
        manifest["origin"] = dict(origin)
    write_file(folder / MANIFEST, sealed(manifest).encode())


def _write_tensors(arrays: Mapping[str, np.ndarray], prefix: str, folder: Path) -> dict[str, dict[str, Any]]:
    files = {}
    groups = list(grouped({name: array.nbytes for name, array in arrays.items()}, MAX_FILE_BYTES))
    for number, group in enumerate(groups, 1):
        file = folder / f"{prefix}{number:05d}-of-{len(groups):05d}.safetensors"
        entry, sums = write_arrays(file, {name: arrays[name] for name in group})
        files[file.name] = {**entry, "tensors": sums}
    return files
