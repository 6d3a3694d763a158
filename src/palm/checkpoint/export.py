"""A checkpoint's weights for other tools: safetensors files under canonical names, and an index of several.

    OUT/config.json                              the resolved config
    OUT/model.safetensors                        all weights, up to 5 GB
    OUT/model-00001-of-00003.safetensors         or as many files as they need,
    OUT/model.safetensors.index.json             and in which of them each is

Source of the names and the index: https://huggingface.co/docs/huggingface_hub/package_reference/serialization.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from palm.checkpoint.about import free_path, writable
from palm.checkpoint.boxes import Boxes
from palm.checkpoint.manifest import CONFIG
from palm.files.streamed import write_streamed
from palm.files.tensors import grouped
from palm.files.write import new_folder, put_in_place, write_file
from palm.spec.parameters import parameters

# Of a file, as the tools that read them have it.
MOST_BYTES = 5 * 10**9
INDEX = "model.safetensors.index.json"
# What the files say of themselves: arrays as NumPy has them.
_ABOUT = {"format": "np"}


def export(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write the weights of a checkpoint to safetensors files in the new folder `out`, for other tools.

    `path` is a checkpoint or a run, which means its newest one. The names are the canonical ones, matrices
    are (in, out), the dtype is the checkpoint's. One tensor at a time is in memory. Weights of more than 5 GB
    go to several files, with the index `model.safetensors.index.json`. `palm.from_numpy` reads them again.

    Raises `CheckpointError` if the checkpoint is damaged, or if `out` exists or cannot be written. Then
    nothing is there.
    """
    boxes = Boxes(path)
    out = free_path(out, overwrite=False)
    table = parameters(boxes.config)
    sizes = {name: parameter.size * boxes.dtype.itemsize for name, parameter in table.items()}
    files = list(grouped(sizes, MOST_BYTES))
    with writable(out), new_folder(out) as folder:
        write_file(folder / CONFIG, boxes.config.to_json().encode())
        weight_map: dict[str, str] = {}
        for number, names in enumerate(files, 1):
            name = "model" + (f"-{number:05d}-of-{len(files):05d}" if len(files) > 1 else "")
            file = folder / f"{name}.safetensors"
            rows = {name: (boxes.dtype, boxes.shapes[name]) for name in names}
            write_streamed(file, rows, _tensors(boxes, names), _ABOUT)
            weight_map |= dict.fromkeys(names, file.name)
        if len(files) > 1:
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
            write_file(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())
        put_in_place(folder, out)
    return out


def _tensors(boxes: Boxes, names: list[str]) -> Iterator[np.ndarray]:
    for name in names:
        shape = boxes.shapes[name]
        yield boxes.read(name, (0,) * len(shape), shape)
