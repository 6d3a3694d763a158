"""What a manifest says of pieces: where those of each tensor are, and that they make it up, each part once.

A whole tensor, in a checkpoint of version 1 or 2, is a tensor of one piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from palm.checkpoint.grids import check_grids, listed
from palm.checkpoint.manifest import MANIFEST, TRAINING, has_grids
from palm.config import PaLMConfig
from palm.errors import CheckpointError
from palm.spec.boxes import Box, miscovered
from palm.spec.parameters import numpy_dtype, parameters

MOMENTS = ("first", "second")
_MOST_CHECKSUM = 2**32 - 1


class Listed(NamedTuple):
    """A piece: its file, the box of its tensor that it holds, and the CRC-32 of its bytes."""

    file: str
    box: Box
    checksum: int


def shapes_of(config: PaLMConfig, *, with_moments: bool) -> dict[str, tuple[int, ...]]:
    """The shape of each weight and, as `first.NAME` and `second.NAME`, of its moments, by name."""
    shapes = {name: row.shape for name, row in parameters(config).items()}
    moments = {f"{moment}.{name}": shape for moment in MOMENTS for name, shape in shapes.items()}
    return shapes | moments if with_moments else shapes


class _OfGrids(Mapping[str, list[Listed]]):
    """The pieces of each tensor, made when they are asked for: there may be millions."""

    def __init__(self, manifest: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._manifest, self._shapes = manifest, shapes

    def __getitem__(self, name: str) -> list[Listed]:
        return [Listed(*piece) for piece in listed(self._manifest, name, self._shapes[name])]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def pieces_of(path: Path, manifest: Mapping[str, Any], config: PaLMConfig) -> Mapping[str, list[Listed]]:
    """The pieces of each tensor of the checkpoint at `path`, whose manifest and config these are.

    Raises `CheckpointError` for a tensor that the config does not have, and unless each element of each
    tensor lies in one piece, and each file has room for its pieces. Linear in the number of pieces.
    """
    shapes = shapes_of(config, with_moments=TRAINING in manifest["files"])
    width = numpy_dtype(manifest["dtype"]).itemsize
    if has_grids(manifest):
        check_grids(path, manifest, shapes, width)
        return _OfGrids(manifest, shapes)
    found: dict[str, list[Listed]] = {name: [] for name in shapes}
    for file, entry in manifest["files"].items():
        size = 0
        for name, row in _rows(entry, shapes):
            if name not in shapes:
                raise CheckpointError(
                    f"{path / file}: {name} must be a tensor of the config; it is none. Save it again."
                )
            piece = Listed(file, *_read(row, len(shapes[name])))
            if not piece.box.fits(shapes[name]) or piece.checksum > _MOST_CHECKSUM:
                raise CheckpointError(
                    f"{path / file}: a piece of {name} must be a CRC-32, a start and a shape in "
                    f"{list(shapes[name])}; got {row!s:.80}. Save it again."
                )
            found[name].append(piece)
            size += math.prod(piece.box.shape) * width
        if size >= entry["bytes"]:
            raise CheckpointError(
                f"{path / file} must have room for its pieces of {size:,} bytes; got {entry['bytes']:,}. "
                "Save it again."
            )
    for name, pieces in found.items():
        _check_covered(path, name, pieces, shapes[name])
    return found


def _rows(entry: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, list[int]]]:
    """Of each piece of a file its tensor, and its checksum, start and shape."""
    for name, checksum in entry.get("tensors", {}).items():
        shape = shapes.get(name, ())
        yield name, [checksum, *(0 for _ in shape), *shape]
    for name, rows in entry.get("pieces", {}).items():
        yield from ((name, row) for row in rows)


def _read(row: list[int], axes: int) -> tuple[Box, int]:
    """The box and the checksum; a box that fits nowhere, if the row is too short or too long."""
    if len(row) != 1 + 2 * axes:
        return Box((), ()), 0
    return Box(tuple(row[1 : 1 + axes]), tuple(row[1 + axes :])), row[0]


def _check_covered(path: Path, name: str, pieces: list[Listed], shape: tuple[int, ...]) -> None:
    wrong = miscovered((piece.box for piece in pieces), shape)
    if wrong is None:
        return
    element, count = wrong
    at = Box(element, (1,) * len(element))
    files = [piece.file for piece in pieces if piece.box.overlap(at)]
    raise CheckpointError(
        f"{path / (files or [MANIFEST])[-1]}: each element of {name} must lie in one piece; got "
        f"{element} in {count}. Save it again."
    )
