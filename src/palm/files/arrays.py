"""NumPy's files, `.npy` and `.npz`: nothing is allocated before the header is held against the bytes there.

Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

from __future__ import annotations

import ast
import math
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import IO, Any, NamedTuple

import numpy as np

from palm.files.objects import MalformedError
from palm.memory import free_memory, in_units

NPY_HEADER = 128
_MAGIC = b"\x93NUMPY"
# Two bytes each; the second one of all versions so far is 0.
_VERSIONS = (b"\1\0", b"\2\0", b"\3\0")
_LONGEST_HEADER = 10_000  # as NumPy itself has it
_MOST_AXES = 32
# What a damaged archive makes `zipfile` raise.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
# Of one byte that is stored, at most so many come out (RFC 1951: 258 bytes of two bits).
_MOST_OF_ONE = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}


class Layout(NamedTuple):
    """What a `.npy` file says of its array, and where the numbers begin."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    by_columns: bool
    offset: int


def read_layout(stream: IO[bytes], size: int) -> Layout:
    """The header of a `.npy` file of which `size` bytes are left; all numbers of its array must be there.

    Leaves the stream at the first number. Raises `MalformedError`.
    """
    start = stream.read(8)
    if start[:6] != _MAGIC or start[6:] not in _VERSIONS:
        raise MalformedError("it must begin as a NumPy file of version 1.0, 2.0 or 3.0; it does not")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(stream.read(width), "little")
    if length > _LONGEST_HEADER:
        raise MalformedError(f"its header must have at most {_LONGEST_HEADER:,} bytes; got {length:,}")
    dtype, shape, by_columns = _parse_header(stream.read(length))
    offset = 8 + width + length
    needed = offset + math.prod(shape) * dtype.itemsize
    if needed > size:
        raise MalformedError(f"{dtype}{list(shape)} needs {needed:,} bytes; got {size:,}")
    return Layout(dtype, shape, by_columns, offset)


def npy_header(dtype: np.dtype[Any], length: int) -> bytes:
    """What stands before the numbers of a row in a `.npy` file: always `NPY_HEADER` bytes."""
    text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': ({length},), }}"
    rest = NPY_HEADER - 10
    return _MAGIC + b"\1\0" + rest.to_bytes(2, "little") + text.ljust(rest - 1).encode() + b"\n"


def read_npy(stream: IO[bytes], size: int) -> np.ndarray:
    """The array of a `.npy` file of which `size` bytes are left. Raises `MalformedError`."""
    layout = read_layout(stream, size)
    try:
        flat = np.empty(math.prod(layout.shape), layout.dtype)
        target, filled = flat.view(np.uint8).data, 0
        while filled < len(target):
            piece = stream.read(min(len(target) - filled, 1 << 22))
            if not piece:
                raise MalformedError("its numbers must all be there; it ends before")
            target[filled : filled + len(piece)] = piece
            filled += len(piece)
        return flat.reshape(layout.shape, order="F" if layout.by_columns else "C")
    except MemoryError:
        raise MalformedError(f"{size:,} bytes do not fit into memory") from None


def read_npz(stream: IO[bytes]) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file by name. Raises `MalformedError`."""
    try:
        with zipfile.ZipFile(stream) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            if len(members) < len(archive.infolist()):
                raise MalformedError("its arrays must have names of their own; two have the same")
            _check_sizes(members, stream.seek(0, os.SEEK_END))
            return {name: _member(archive, member) for name, member in members.items()}
    except MalformedError:
        raise
    except _DAMAGE as error:
        raise MalformedError(f"it must be a NumPy archive; {error!s:.80}") from None


def _check_sizes(members: Mapping[str, zipfile.ZipInfo], size: int) -> None:
    """Before a byte is inflated: what comes out must come of what is there, and fit into memory."""
    for name, member in members.items():
        if not name.isprintable() or member.compress_type not in _MOST_OF_ONE:
            raise MalformedError(f"{name!r:.80} must be printable, and stored or deflated; it is not")
        if member.file_size > member.compress_size * _MOST_OF_ONE[member.compress_type]:
            raise MalformedError(
                f"{name:.80} must come of what is stored; got {member.file_size:,} bytes of "
                f"{member.compress_size:,}"
            )
    stored = sum(member.compress_size for member in members.values())
    if stored > size:
        raise MalformedError(f"its arrays must lie beside one another; got {stored:,} bytes in {size:,}")
    inflated, free = sum(member.file_size for member in members.values()), free_memory()
    if free is not None and inflated > free:
        raise MalformedError(f"its arrays of {in_units(inflated)} do not fit into memory")


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as stream:
        array = read_npy(stream, member.file_size)
        stream.read(1)  # the end, where the checksum is held against the bytes
    return array


def _parse_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    try:
        # Python 2 wrote (3L,).
        found = ast.literal_eval(re.sub(r"(?<=\d)L", "", header.decode().strip(" \n")))
        descr, shape, by_columns = found["descr"], found["shape"], found["fortran_order"]
        dtype = np.dtype(descr) if isinstance(descr, str) else None
    except (ValueError, SyntaxError, TypeError, LookupError, RecursionError, MemoryError) as error:
        raise MalformedError(f"its header must be NumPy's; {error!s:.60}") from None
    if dtype is None or dtype.kind not in "?biufcV" or not dtype.itemsize:
        raise MalformedError(f"it must hold plain numbers; got descr={descr!r:.60}")
    fits = isinstance(shape, tuple) and len(shape) <= _MOST_AXES and isinstance(by_columns, bool)
    if not fits or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise MalformedError(f"its shape must be whole numbers of at least 0; got {shape!r:.60}")
    if math.prod(n for n in shape if n) * dtype.itemsize >= 2**63:
        raise MalformedError(f"its shape must be one that memory can hold; got {shape!r:.60}")
    return dtype, shape, by_columns
