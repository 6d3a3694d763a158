"""Any box of any tensor of a checkpoint, read from the pieces that it overlaps, and from nothing else."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from palm.checkpoint.about import read_config, read_fields
from palm.checkpoint.locate import checkpoint_path
from palm.checkpoint.manifest import check_size, damaged, key_of, read_manifest
from palm.checkpoint.pieces import Listed, pieces_of, shapes_of
from palm.config import DType
from palm.errors import CheckpointError, WeightsError
from palm.files.objects import MalformedError
from palm.files.read import Reader, open_regular
from palm.files.sealed import seal_of
from palm.files.streamed import rows_of_a_block
from palm.files.tensors import Row, empty, read_header
from palm.spec.boxes import Box, box_of, read_into
from palm.spec.parameters import dtype_name, numpy_dtype


@dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint; a part of it is read when it is asked for, as `Boxes.read` does."""

    boxes: Boxes
    name: str
    dtype: DType

    def __getitem__(self, at: tuple[slice, ...], /) -> np.ndarray:
        return self._cast(self.boxes.read(self.name, *box_of(at, self.boxes.shapes[self.name])))

    def read_into(self, room: np.ndarray, at: tuple[slice, ...]) -> None:
        """Fill an array with the elements in these slices, as `palm.spec.boxes.read_into` does."""
        if room.dtype == self.boxes.dtype == numpy_dtype(self.dtype):
            self.boxes.read_into(room, self.name, box_of(at, self.boxes.shapes[self.name]).start)
        else:
            read_into(room, self[at], tuple(map(slice, room.shape)))

    def _cast(self, part: np.ndarray) -> np.ndarray:
        if part.dtype == numpy_dtype(self.dtype):
            return part
        with np.errstate(over="ignore"):
            cast = part.astype(numpy_dtype(self.dtype))
        if not np.isfinite(cast).all():
            raise WeightsError(
                f"weights in {self.dtype}: {self.name} must be finite; it is not. Choose another dtype."
            )
        return cast


class Boxes:
    """The tensors of a checkpoint of any version, to be read box by box.

    `config`, `dtype` and `fields` (of a run in progress, else None) are those of the checkpoint. `path` is a
    checkpoint or a run, which means its newest one. `manifest` is the checkpoint's, if it was read before.
    Raises `CheckpointError` unless the pieces that the manifest lists make up each tensor.
    """

    def __init__(self, path: str | os.PathLike[str], manifest: Mapping[str, Any] | None = None) -> None:
        self.path = checkpoint_path(path)
        self._manifest = read_manifest(self.path) if manifest is None else manifest
        self.fields = read_fields(self.path, self._manifest)
        self.config = read_config(self.path, self._manifest)
        self.dtype = numpy_dtype(self._manifest["dtype"])
        self.shapes = shapes_of(self.config, with_moments=self.fields is not None)
        self._pieces = pieces_of(self.path, self._manifest, self.config)
        self._headers: dict[str, tuple[dict[str, Row], int]] = {}  # of each file, and where its numbers begin

    @property
    def seal(self) -> str:
        """That of the manifest, which has checksums of all else: other numbers have another seal."""
        return seal_of(self._manifest)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a wing takes weights and moments from, by name."""
        return self.as_type(dtype_name(self.dtype))

    def as_type(self, dtype: DType) -> dict[str, Tensor]:
        """`tensors`, of which each part is cast to a dtype. Raises `WeightsError` where that overflows."""
        return {name: Tensor(self, name, dtype) for name in self.shapes}

    def read(self, name: str, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        """The elements of a tensor from `start` on, of that shape: a weight, `first.NAME` or `second.NAME`.

        Needs the box and a few MiB. Raises what `read_into` raises.
        """
        self._check_box(name, Box(tuple(start), tuple(shape)))
        try:
            found = empty(tuple(shape), self.dtype)
        except MalformedError as error:
            raise CheckpointError(
                f"{self.path}: {name} must fit into memory; {error}. Use more processes."
            ) from None
        self.read_into(found, name, tuple(start))
        return found

    def whole(self, name: str) -> np.ndarray:
        """`read` for all elements of a tensor."""
        return self.read(name, (0,) * len(self.shapes[name]), self.shapes[name])

    def rows(self, name: str) -> Iterator[np.ndarray]:
        """All rows of a tensor, some at a time, so that of a grid of pieces each is read once.

        Needs a few MiB for a grid. What is given out of a piece is held against its CRC-32 after its last row
        only. Raises `CheckpointError` as `read_into` does.
        """
        count, *widths = self.shapes[name]
        step = rows_of_a_block(self.shapes[name], self.dtype)
        bands: dict[int, list[Listed]] = {}
        for piece in self._pieces[name]:
            bands.setdefault(piece.box.start[0], []).append(piece)
        for first, last in pairwise([*sorted(bands), count]):
            band = bands[first]
            size = sum(math.prod(piece.box.shape[1:]) for piece in band)
            if size != math.prod(widths) or any(piece.box.shape[0] != last - first for piece in band):
                # It is not of a grid.
                yield self.read(name, (first, *(0 for _ in widths)), (last - first, *widths))
                continue
            for parts in zip(*(self._blocks(name, piece, step) for piece in band), strict=True):
                room = np.empty((len(parts[0]), *widths), self.dtype)
                for (_, (start, shape), _), part in zip(band, parts, strict=True):
                    room[:, *(slice(a, a + n) for a, n in zip(start[1:], shape[1:], strict=True))] = part
                yield room

    def verify(self, name: str) -> None:
        """Hold all pieces of a tensor against their CRC-32. Raises `CheckpointError` as `read_into` does."""
        step = rows_of_a_block(self.shapes[name], self.dtype)
        for piece in self._pieces[name]:
            for _ in self._blocks(name, piece, step):
                pass

    def read_into(self, room: np.ndarray, name: str, start: tuple[int, ...]) -> None:
        """Fill an array of the checkpoint's dtype, however it lies, with the elements from `start` on.

        Only the files that hold some of them are opened, and only the pieces that they are in are read; each
        of these is held against its CRC-32 as a whole. Raises `CheckpointError`, which names file and tensor,
        for what is missing, damaged or not finite: the array is worth nothing then. Raises `ValueError` for
        a box that does not lie in the tensor.
        """
        box = Box(start, room.shape)
        self._check_box(name, box)
        for piece in self._pieces[name]:
            if piece.box.overlap(box):
                self._take(name, piece, box, room)

    def _check_box(self, name: str, box: Box) -> None:
        if name not in self.shapes or not box.fits(self.shapes[name]):
            raise ValueError(
                f"box must lie in a tensor of {self.path}; got {name} from {box.start}, {box.shape}."
            )

    def _take(self, name: str, piece: Listed, box: Box, found: np.ndarray) -> None:
        """Read a piece, and copy into `found`, which holds the box, what both have."""
        with self._at(name, piece) as stream:
            self._copy(stream, name, piece, box, found)

    @contextmanager
    def _at(self, name: str, piece: Listed) -> Iterator[BufferedReader]:
        """The file of a piece, at its first number."""
        file = self.path / piece.file
        try:
            with open_regular(file) as stream:
                row, begin = self._row(file, stream, name, piece)
                stream.seek(begin + row.first)
                yield stream
        except MalformedError as error:
            raise CheckpointError(
                f"{file} must be a safetensors file; {error}. Restore another copy."
            ) from None
        except OSError as error:
            raise CheckpointError(
                f"{file} must be a file that can be read, for it has a piece of {name}; {error.strerror}. "
                "Restore another copy."
            ) from None

    def _blocks(self, name: str, piece: Listed, step: int) -> Iterator[np.ndarray]:
        """The rows of a piece, so many at a time."""
        count, *widths = piece.box.shape
        checksum = 0
        with self._at(name, piece) as stream:
            for done in range(0, count, step):
                block = np.empty((min(step, count - done), *widths), self.dtype)
                content = block.reshape(-1).view(np.uint8).data
                if stream.readinto(content) < len(content):
                    break  # it became shorter, and its checksum differs
                checksum = zlib.crc32(content, checksum)
                yield block
        self._check_sum(name, piece, checksum)

    def _check_sum(self, name: str, piece: Listed, checksum: int) -> None:
        if checksum != piece.checksum:
            raise CheckpointError(
                f"{self.path / piece.file} must be as it was saved; its checksum differs, damaged in "
                f"{name} from {piece.box.start}. Restore another copy."
            )

    def _row(self, file: Path, stream: BufferedReader, name: str, piece: Listed) -> tuple[Row, int]:
        """Where the piece lies in its file, whose header is read once."""
        reader, entry = Reader(stream), self._manifest["files"][piece.file]
        check_size(reader, file, entry)
        if piece.file not in self._headers:
            rows = read_header(reader)
            if reader.digest() != entry.get("header", reader.digest()):
                raise CheckpointError(damaged(file, ", damaged in its header"))
            self._headers[piece.file] = (rows, reader.at)
        rows, begin = self._headers[piece.file]
        key = name if "tensors" in entry else key_of(name, piece.box.start)
        row = rows.get(key)
        if row is None or (row.dtype, row.shape) != (self.dtype, piece.box.shape):
            got = "none" if row is None else f"{row.dtype}{list(row.shape)}"
            raise CheckpointError(
                f"{file} must have {key} as {self.dtype}{list(piece.box.shape)}; got {got}. "
                "Restore another copy."
            )
        return row, begin

    def _copy(self, stream: BufferedReader, name: str, piece: Listed, box: Box, found: np.ndarray) -> None:
        """Copy what the box has of a piece, or read it in its place. Numbers are called wrong only if they
        were saved so."""
        (first, *rest), (count, *widths) = piece.box
        step, checksum, is_finite = rows_of_a_block(piece.box.shape, self.dtype), 0, True
        room: np.ndarray | None = None
        for done in range(0, count, step):
            here = Box((first + done, *rest), (min(step, count - done), *widths))
            both = here.overlap(box)
            block = part = None if both is None else found[both.within(box)]
            if block is None or both != here or not block.flags.c_contiguous:  # not read in place
                room = np.empty((min(step, count), *widths), self.dtype) if room is None else room
                block = room[: min(step, count - done)]
            content = block.reshape(-1).view(np.uint8).data
            if stream.readinto(content) < len(content):
                break  # it became shorter, and its checksum differs
            checksum = zlib.crc32(content, checksum)
            if both is not None and part is not None:
                own = block[both.within(here)]
                is_finite = is_finite and bool(np.isfinite(own).all())
                if part is not block:
                    read_into(part, block, both.within(here))
        self._check_sum(name, piece, checksum)
        if not is_finite:
            raise CheckpointError(
                f"{self.path / piece.file}: {name} from {piece.box.start} must be finite; it is not. Go back "
                "to weights from before the run diverged."
            )
