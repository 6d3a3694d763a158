"""Pieces that form a grid, as a mesh cuts a tensor: a manifest lists them in eight digits each.

    "grids": [{"starts": [[0, 64], [0, 32, 48]], "files": [0, 0, 1, 1, 2, 2]}, …]
    "tensors": {"embedding": {"grid": 0, "crc32": "00c0ffee…"}, …}

A grid says where each dimension is cut, and of each cell, row after row, the number of its file among those
that hold pieces, by name. Many tensors share one. Of the 540B model and its moments on 2,048 devices there
are 3.6 million pieces: 30 MB, where a row for each takes 420 MB.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any, TypeAlias

from palm.checkpoint.manifest import MANIFEST, files_of_tensors
from palm.errors import CheckpointError
from palm.spec.boxes import Box

# Of so many the digits, and all else, fit into the 64 MiB that a file of JSON may have.
MOST_PIECES = 7_000_000
_DIGITS = 8
Starts: TypeAlias = Sequence[Sequence[int]]
Shape: TypeAlias = tuple[int, ...]


def cells(starts: Starts, shape: Shape) -> Iterator[Box]:
    """The boxes of a tensor of that shape that is cut there, row after row."""
    spans = [pairwise([*firsts, size]) for firsts, size in zip(starts, shape, strict=True)]
    for cell in product(*spans):
        yield Box(tuple(first for first, _ in cell), tuple(last - first for first, last in cell))


def gridded(files: Mapping[str, Mapping[str, Any]], shapes: Mapping[str, Shape]) -> dict[str, Any] | None:
    """What a manifest says in place of the `pieces` of files; None unless those of each tensor are a grid."""
    own = sorted(file for file, entry in files.items() if "pieces" in entry)
    if any(name not in shapes for file in own for name in files[file]["pieces"]):
        return None
    grids: dict[tuple[Any, ...], int] = {}
    tensors = {}
    for name, shape in shapes.items():
        rows = [
            (number, row) for number, file in enumerate(own) for row in files[file]["pieces"].get(name, ())
        ]
        at = {tuple(row[1 : 1 + len(shape)]): (number, row) for number, row in rows}
        starts = tuple(tuple(sorted({start[axis] for start in at})) for axis in range(len(shape)))
        boxes = list(cells(starts, shape))
        found = [at.get(box.start) for box in boxes]
        is_grid = len(rows) == len(boxes) > 0 and not any(firsts[0] for firsts in starts)
        if not is_grid or any(
            one is None or one[1][1:] != [*box.start, *box.shape]
            for one, box in zip(found, boxes, strict=True)
        ):
            return None
        whole = [one for one in found if one is not None]
        grid = starts, tuple(number for number, _ in whole)
        digits = "".join(f"{row[0]:0{_DIGITS}x}" for _, row in whole)
        tensors[name] = {"grid": grids.setdefault(grid, len(grids)), "crc32": digits}
    return {
        "grids": [{"starts": [*map(list, starts)], "files": list(numbers)} for starts, numbers in grids],
        "tensors": tensors,
    }


def listed(manifest: Mapping[str, Any], name: str, shape: Shape) -> Iterator[tuple[str, Box, int]]:
    """Of each piece of a tensor its file, its box and its CRC-32, of a manifest that `check_grids` passed."""
    tensor, files = manifest["tensors"][name], files_of_tensors(manifest)
    grid, digits = manifest["grids"][tensor["grid"]], tensor["crc32"]
    for i, (number, box) in enumerate(zip(grid["files"], cells(grid["starts"], shape), strict=True)):
        yield files[number], box, int(digits[i * _DIGITS : (i + 1) * _DIGITS], 16)


def check_grids(path: Path, manifest: Mapping[str, Any], shapes: Mapping[str, Shape], width: int) -> None:
    """Raise `CheckpointError` unless the grids make up each tensor, and each file has room for its pieces.

    `width`: the bytes of a number.
    """
    files, grids, tensors = files_of_tensors(manifest), manifest["grids"], manifest["tensors"]
    for name in [*tensors, *shapes]:
        if name not in shapes or name not in tensors:
            raise _misfit(path, f"{name} must be a tensor of the config, and each of these be listed", "")
    counts: Counter[tuple[int, Shape]] = Counter()
    for name, tensor in tensors.items():
        if tensor["grid"] >= len(grids):
            raise _misfit(path, f"{name} must have one of {len(grids)} grids", tensor["grid"])
        starts, numbers = (grids[tensor["grid"]][key] for key in ("starts", "files"))
        shape = shapes[name]
        if len(starts) != len(shape) or not all(map(_is_cut, starts, shape)):
            raise _misfit(path, f"the grid of {name} must cut a tensor of {list(shape)}", starts)
        many = math.prod(map(len, starts))
        if not many == len(numbers) == len(tensor["crc32"]) / _DIGITS or max(numbers) >= len(files):
            raise _misfit(path, f"the grid of {name} must have {many:,} files and CRC-32", len(numbers))
        counts[tensor["grid"], shape] += 1
    sizes = [0] * len(files)
    for (grid, shape), count in counts.items():
        for number, box in zip(grids[grid]["files"], cells(grids[grid]["starts"], shape), strict=True):
            sizes[number] += count * width * math.prod(box.shape)
    for file, size in zip(files, sizes, strict=True):
        if size >= (has := manifest["files"][file]["bytes"]):
            raise CheckpointError(
                f"{path / file} must have room for its pieces of {size:,} bytes; got {has:,}. Save it again."
            )


def _is_cut(firsts: Sequence[int], size: int) -> bool:
    return len(firsts) > 0 and firsts[0] == 0 and all(a < b for a, b in pairwise([*firsts, size]))


def _misfit(path: Path, words: str, got: object) -> CheckpointError:
    return CheckpointError(f"{path / MANIFEST}: {words}; got {got!s:.80}. Save it again.")
