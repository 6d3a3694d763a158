"""safetensors files that are written one tensor after the other, with checksums taken on the way.

The library wants all tensors of a file at once. Here each is asked for when its turn comes, and at most a few
MiB of it are in memory twice.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from palm.files.tensors import header_of
from palm.files.write import opened
from palm.memory import put

_BLOCK = 1 << 22


class Streamed(NamedTuple):
    """A file that was written.

    `header` is the SHA-256 of its header; `sha256` that of all its bytes, if it was asked for. `checksums`
    are the CRC-32 of each tensor, in order.
    """

    size: int
    header: str
    sha256: str | None
    checksums: list[int]


def write_streamed(
    file: Path,
    rows: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    arrays: Iterable[np.ndarray],
    about: Mapping[str, str] | None = None,
    *,
    hashed: bool = False,
) -> Streamed:
    """Write tensors of these names, dtypes and shapes, which `arrays` gives in this order.

    `about`: texts by name for the file's metadata. `hashed`: whether to take the SHA-256 of all bytes. Raises
    `OSError`, and `ValueError` for an array of another dtype or shape.
    """
    header = header_of(rows, about or {})
    digest, size, checksums = hashlib.sha256(header), len(header), []
    of_header = digest.hexdigest()
    with opened(file) as write:
        write(header)
        for (name, row), array in zip(rows.items(), arrays, strict=True):
            if (array.dtype, array.shape) != row:
                raise ValueError(f"{name} must be {row}; got {(array.dtype, array.shape)}")
            checksum, end = 0, size + array.nbytes
            for block in blocks(array):
                content = _by_rows(block).reshape(-1).view(np.uint8).data
                if hashed:
                    digest.update(content)
                checksum = zlib.crc32(content, checksum)
                size += len(content)
                write(content)
            if size != end:
                raise ValueError(f"{name} must be written whole; {size - end:+,} bytes differ")
            checksums.append(checksum)
    return Streamed(size, of_header, digest.hexdigest() if hashed else None, checksums)


def write_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, int]]:
    """Write arrays in the order of the library, the widest first and then by name, so that each is aligned.

    The size and the SHA-256 of the file, as manifests have them, and the CRC-32 of each array. Raises
    `OSError`.
    """
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    rows = {name: (arrays[name].dtype, arrays[name].shape) for name in names}
    written = write_streamed(file, rows, (arrays[name] for name in names), hashed=True)
    entry = {"bytes": written.size, "sha256": written.sha256}
    return entry, dict(zip(names, written.checksums, strict=True))


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Views of a few MiB of an array, one after the other, cut along its first dimension."""
    array = np.atleast_1d(np.asarray(array))  # a np.matrix has two axes whatever is done with it
    rows = rows_of_a_block(array.shape, array.dtype)
    yield from (array[first : first + rows] for first in range(0, len(array), rows))


def _by_rows(block: np.ndarray) -> np.ndarray:
    """The same numbers, row after row."""
    if block.flags.c_contiguous:
        return block
    turned = np.empty(block.shape, block.dtype)
    put(turned, block)
    return turned


def rows_of_a_block(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """How many rows of an array of that shape are a few MiB, at least one."""
    return max(1, _BLOCK // max(1, math.prod(shape[1:]) * dtype.itemsize))
