"""A checkpoint for other tools: its weights in safetensors files, with an index of several, or as programs.

    OUT/config.json                              the resolved config, and what else the format has
    OUT/model.safetensors                        all weights, up to 5 GB
    OUT/model-00001-of-00003.safetensors         or as many files as they need,
    OUT/model.safetensors.index.json             and in which of them each is

Formats of programs: see palm.checkpoint.programs.
Source of the names and the index: https://huggingface.co/docs/huggingface_hub/package_reference/serialization.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from palm.checkpoint import transformers
from palm.checkpoint.about import free_path, writable
from palm.checkpoint.boxes import Boxes
from palm.checkpoint.card import CARD, card, check_license
from palm.checkpoint.exported import write_programs
from palm.checkpoint.manifest import CONFIG
from palm.checkpoint.programs import KINDS
from palm.checkpoint.progress import summarise
from palm.checkpoint.tokenizer import checkpoint_tokenizer
from palm.checkpoint.transformers import INDEX
from palm.errors import ConfigError
from palm.files.streamed import write_streamed
from palm.files.tensors import grouped
from palm.files.write import new_folder, put_in_place, write_file
from palm.spec.parameters import dtype_name, parameters

# Of a file, as the tools that read them have it.
MOST_BYTES = 5 * 10**9
Format = Literal["safetensors", "transformers", "torch-export", "stablehlo"]


def export(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: Format = "safetensors",
    license: str | None = None,
    length: int | None = None,
) -> Path:
    """Write a checkpoint for other tools to the new folder `out`: its weights, or the model as programs.

    `path` is a checkpoint or a run, which means its newest one. The dtype is the checkpoint's.

    - "safetensors": the names are the canonical ones, and matrices are (in, out); `palm.from_numpy` reads
      them again. Weights of more than 5 GB go to several files, with the index
      `model.safetensors.index.json`. One tensor at a time is in memory.
    - "transformers": the same for `AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)`, with
      the tokenizer and a model card, README.md, which names the `license` if one is given; `palm import
      transformers` reads it again.
    - "torch-export", "stablehlo": the forward pass and a decoding step of at most `length` positions (2,048)
      as programs of torch.export, or of jax.export; `palm.load_programs` reads them again. Before the folder
      gets its name, palm reads the programs back, and compares their logits with the model's.

    Raises `CheckpointError` if the checkpoint is damaged, if `out` exists or cannot be written, or if the
    programs do not agree with the model, `ConfigError` for an unknown format, a length that is none, a
    license that is no name, and for either where the format has no place for it, `TokenError` for more
    positions than xPos has, and of programs what `palm.load` raises. Then nothing is there.
    """
    if format not in get_args(Format):
        raise ConfigError(
            f"format must be one of {', '.join(get_args(Format))}; got format={format!r}. Choose one."
        )
    if length is not None and format not in KINDS:
        raise ConfigError(
            f"length must be left out but for programs; got {length=} and {format=}. Leave it out."
        )
    if format == "transformers":
        return export_card(path, out, "FOLDER", license)
    if license is not None:
        raise ConfigError(
            f"license must be left out but with format=transformers, which has a card; got {license=}. "
            "Leave it out."
        )
    boxes = Boxes(path)
    if format in KINDS:
        return write_programs(boxes, free_path(out, overwrite=False), format, length)
    return _write(boxes, out, format, {CONFIG: boxes.config.to_json().encode()})


def export_card(
    path: str | os.PathLike[str], out: str | os.PathLike[str], name: str, license: str | None
) -> Path:
    """`export` for transformers, with a card that says how to load the model by `name`."""
    check_license(license)
    boxes = Boxes(path)
    tokenizer = checkpoint_tokenizer(boxes.path)
    beside = transformers.about(boxes.config, dtype_name(boxes.dtype), tokenizer)
    beside[CARD] = card(summarise(boxes.path), tokenizer, name, license)
    return _write(boxes, out, "transformers", beside)


def _write(boxes: Boxes, out: str | os.PathLike[str], format: Format, beside: Mapping[str, bytes]) -> Path:
    """Write the weights, and the files beside them, to the new folder `out`."""
    out = free_path(out, overwrite=False)
    table = parameters(boxes.config)
    sizes = {name: parameter.size * boxes.dtype.itemsize for name, parameter in table.items()}
    files = list(grouped(sizes, MOST_BYTES))
    layout = _Layout(boxes, format)
    with writable(out), new_folder(out) as folder:
        for name, content in beside.items():
            write_file(folder / name, content)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(files, 1):
            name = "model" + (f"-{number:05d}-of-{len(files):05d}" if len(files) > 1 else "")
            file = folder / f"{name}.safetensors"
            rows = {layout.name(name): (boxes.dtype, layout.shape(name)) for name in names}
            write_streamed(file, rows, map(layout.read, names), layout.about)
            weight_map |= dict.fromkeys(rows, file.name)
        if len(files) > 1:
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
            write_file(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())
        put_in_place(folder, out)
    return out


class _Layout:
    """How a format names the tensors, and how they lie."""

    def __init__(self, boxes: Boxes, format: Format) -> None:
        self._boxes, self._is_ours = boxes, format == "safetensors"
        self.about = {"format": "np" if self._is_ours else "pt"}  # arrays as NumPy has them, or as PyTorch

    def name(self, name: str) -> str:
        return name if self._is_ours else transformers.stored_name(name)

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._boxes.shapes[name]
        return shape[::-1] if self._turns(name) else shape

    def read(self, name: str) -> np.ndarray:
        array = self._boxes.whole(name)
        return np.ascontiguousarray(array.T) if self._turns(name) else array

    def _turns(self, name: str) -> bool:
        return not self._is_ours and transformers.is_turned(name, self._boxes.config)
