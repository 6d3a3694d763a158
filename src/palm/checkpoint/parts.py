"""The files of a checkpoint in pieces: one of each process that has any, and the manifest of all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from palm.checkpoint.grids import gridded
from palm.checkpoint.manifest import FORMAT, IN_PIECES, MANIFEST, TRAINING, check_manifest, key_of
from palm.checkpoint.pieces import pieces_of, shapes_of
from palm.config import PaLMConfig
from palm.errors import CheckpointError, WeightsError
from palm.files.objects import MOST_BYTES
from palm.files.sealed import read_sealed, sealed
from palm.files.streamed import blocks, write_streamed
from palm.files.write import fsync, write_file
from palm.spec.boxes import Piece
from palm.spec.parameters import dtype_name

PIECES = "pieces-"
# What a process says of its own file, until the manifest says so.
_PART = "part-"


def write_pieces(folder: Path, process: int, processes: int, pieces: Iterable[Piece]) -> None:
    """Write the pieces that a process owns into a folder that all share, and wait until they are on the disk.

    Raises `OSError`, and `WeightsError` for a piece that is given twice or not finite, or for two dtypes.
    """
    given = list(pieces)
    owned = {key_of(piece.name, piece.start): piece for piece in given}
    if len(owned) < len(given):
        raise WeightsError("pieces must each be given once; got one twice. Give what this process owns.")
    files, dtypes = {}, sorted({dtype_name(piece.array.dtype) for piece in given})
    if owned:
        for key, piece in owned.items():
            if not all(np.isfinite(block).all() for block in blocks(piece.array)):
                raise WeightsError(
                    f"weights: {key} must be finite; it is not. Go back to weights from before the run "
                    "diverged."
                )
        file = folder / f"{PIECES}{_number(process, processes)}.safetensors"
        rows = {key: (piece.array.dtype, piece.array.shape) for key, piece in owned.items()}
        written = write_streamed(file, rows, (piece.array for piece in given))
        fsync(file)
        listed: dict[str, list[list[int]]] = {}
        for piece, checksum in zip(given, written.checksums, strict=True):
            listed.setdefault(piece.name, []).append([checksum, *piece.start, *piece.array.shape])
        files[file.name] = {"bytes": written.size, "header": written.header, "pieces": listed}
    part = {"dtypes": dtypes, "files": files}
    write_file(folder / f"{_PART}{_number(process, processes)}.json", sealed(part).encode())


def seal(
    folder: Path, path: Path, config: PaLMConfig, files: dict[str, dict[str, Any]], processes: int
) -> None:
    """Write the manifest of a folder that has the pieces of all processes; `files`: entries of its others.

    Raises `OSError`, and `CheckpointError` unless all have, and unless their pieces make up each tensor once.
    """
    dtypes: set[str] = set()
    for process in range(processes):
        part = folder / f"{_PART}{_number(process, processes)}.json"
        try:
            said, is_whole = read_sealed(part)
        except OSError:
            said, is_whole = None, False
        if said is None or not is_whole:
            raise CheckpointError(
                f"path must be written by {processes} processes; got path={path}, of which number {process} "
                "failed. See what it says itself."
            )
        part.unlink()
        files |= said["files"]
        dtypes |= {*said["dtypes"]}
    if len(dtypes) != 1:
        raise CheckpointError(
            f"pieces must be of one dtype; got {', '.join(sorted(dtypes)) or 'none'}. Cast the model to one."
        )
    manifest = {"format": FORMAT, "version": IN_PIECES, "dtype": dtypes.pop(), "files": files}
    grids = gridded(files, shapes_of(config, with_moments=TRAINING in files))
    if grids is not None:
        listed = {
            file: {key: value for key, value in entry.items() if key != "pieces"}
            for file, entry in files.items()
        }
        manifest |= {"files": listed, **grids}
    check_manifest(path / MANIFEST, manifest)
    pieces_of(path, manifest, config)
    text = sealed(manifest).encode()
    if len(text) > MOST_BYTES:
        raise CheckpointError(
            f"{MANIFEST} must have at most {MOST_BYTES:,} bytes; got {len(text):,} for {len(files)} files. "
            "Use fewer processes with more devices each."
        )
    write_file(folder / MANIFEST, text)


def _number(process: int, processes: int) -> str:
    return f"{process + 1:05d}-of-{processes:05d}"
