"""safetensors files: the length of a JSON header, the header, and the tensors' bytes one after the other.

Source: https://huggingface.co/docs/safetensors (format). The names and types of the header are checked, and
its offsets must tile the data exactly, before a byte of a tensor is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from palm.files.objects import MalformedError, parse_object
from palm.files.read import Reader
from palm.files.schema import ABSENT, NATURAL, PRINTABLE, TEXT, UNICODE, ByName, Items, Record, check

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_METADATA = "__metadata__"
_LENGTH = 8
_ROW = Record({"dtype": TEXT, "shape": Items(NATURAL), "data_offsets": Items(NATURAL)}, others=ABSENT)


class Row(NamedTuple):
    """One tensor of a header: what it is, and which bytes after the header are its own."""

    dtype: np.dtype
    shape: tuple[int, ...]
    first: int
    last: int


def read_header(reader: Reader) -> dict[str, Row]:
    """The tensors of a file by name, in the order in which they lie. Raises `MalformedError`."""
    length = int.from_bytes(reader.read(_LENGTH), "little")
    if not 0 < length <= reader.size - _LENGTH:
        raise MalformedError(f"the header must lie in the file; got a length of {length:,} bytes")
    header = parse_object(reader.read(length))
    check(header.pop(_METADATA, {}), ByName(UNICODE, UNICODE))
    check(header, ByName(PRINTABLE, _ROW))
    rows = {name: _row(name, plain) for name, plain in header.items()}
    rows = dict(sorted(rows.items(), key=lambda item: (item[1].first, item[1].last)))
    end = 0
    for name, row in rows.items():
        if row.first != end:
            raise MalformedError(f"{name} must begin where another tensor ends, at {end}; got {row.first}")
        end = row.last
    if end != reader.size - reader.at:
        raise MalformedError(f"the tensors must be {reader.size - reader.at:,} bytes long; they are {end:,}")
    return rows


def read_tensors(reader: Reader) -> dict[str, np.ndarray]:
    """All tensors of a file by name, in the order in which they lie.

    Raises `MalformedError`, also if they do not fit into memory.
    """
    arrays = {}
    for name, row in read_header(reader).items():
        arrays[name] = empty(row.shape, row.dtype)
        reader.fill(arrays[name])
    return arrays


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Room for an array. Raises `MalformedError` if there is none."""
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError):  # ValueError: an axis of 0 beside axes beyond any memory
        raise MalformedError(f"{dtype}{list(shape)} does not fit into memory") from None


def header_of(rows: Mapping[str, tuple[np.dtype, tuple[int, ...]]], about: Mapping[str, str]) -> bytes:
    """The first bytes of a file of tensors of these dtypes and shapes, which lie in this order."""
    header: dict[str, Any] = {_METADATA: dict(about)} if about else {}
    end = 0
    for name, (dtype, shape) in rows.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)  # so that the numbers begin where a processor likes it
    return len(text).to_bytes(_LENGTH, "little") + text


def _row(name: str, plain: Mapping[str, Any]) -> Row:
    dtype, shape, offsets = plain["dtype"], plain["shape"], plain["data_offsets"]
    if dtype not in _DTYPES:
        raise MalformedError(f"{name} must be of one of {', '.join(_DTYPES)}; got dtype={dtype!r:.40}")
    if len(offsets) != 2 or len(shape) > 32:
        raise MalformedError(f"{name} must have two data_offsets and at most 32 axes; it has others")
    first, last = offsets
    if last - first != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise MalformedError(f"{name} must have the bytes of its shape {shape}; got {last - first:,}")
    return Row(_DTYPES[dtype], tuple(shape), first, last)


def grouped(sizes: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Names of tensors in order, file by file: no file of several tensors has more than `most` bytes."""
    group: list[str] = []
    size = 0
    for name, needed in sizes.items():
        if group and size + needed > most:
            yield group
            group, size = [], 0
        group.append(name)
        size += needed
    yield group
