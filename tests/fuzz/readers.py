"""What files say, read by other packages than palm; and how their checksums are made to fit again."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import ml_dtypes
import numpy as np
from damage import entry_of_pieces
from fuzz import entries
from safetensors import deserialize

from palm.checkpoint.manifest import fingerprint
from palm.data.shards import MANIFEST as SHARDS
from palm.files.arrays import NPY_HEADER
from palm.files.sealed import sealed
from palm.parity.programs.trace import _digest

Tree = dict[str, Any]


def holds(read: Any, told: Any) -> bool:
    """Whether what was read has all that is told, each array bit by bit. Null tells nothing."""
    if told is None:
        return True
    if isinstance(told, dict):
        own = read if isinstance(read, dict) else vars(read)
        return all(holds(own.get(name), part) for name, part in told.items())
    if isinstance(told, list | tuple):
        return len(read) == len(told) and all(map(holds, read, told))
    if isinstance(told, np.ndarray):
        is_array = isinstance(read, np.ndarray) and (read.dtype, read.shape) == (told.dtype, told.shape)
        return is_array and read.tobytes() == told.tobytes()
    return isinstance(read, bool) == isinstance(told, bool) and (
        read == told or {repr(read), repr(told)} == {"nan"}
    )


def load_json(file: Path) -> Any:
    return json.loads(file.read_bytes())


def text(file: Path) -> np.ndarray:
    return np.fromfile(file, np.uint8).astype(np.int64)


def lines(file: Path) -> list[str]:
    """The lines of a text, without what ends them."""
    content = file.read_bytes().decode("utf-8-sig").removesuffix("\n")
    return [line.removesuffix("\r") for line in content.split("\n")]


def tensors(file: Path) -> dict[str, np.ndarray]:
    """By the package of the format's authors."""
    found = {}
    for name, row in deserialize(file.read_bytes()):
        kind = re.sub(r"^F", "float", re.sub(r"^I", "int", re.sub(r"^U", "uint", row["dtype"])))
        dtype = {"BOOL": np.dtype("?"), "BF16": np.dtype(ml_dtypes.bfloat16)}.get(kind) or np.dtype(kind)
        found[name] = np.frombuffer(bytes(row["data"]), dtype).reshape(row["shape"])
    return found


def npz(file: Path) -> dict[str, np.ndarray]:
    with ZipFile(file) as archive:
        return {
            name.removesuffix(".npy"): np.load(io.BytesIO(archive.read(name)), allow_pickle=False)
            for name in archive.namelist()
        }


def pt(file: Path) -> Any:
    import torch

    return torch.load(file, map_location="cpu", weights_only=True)


def npy_sequence(file: Path) -> list[np.ndarray]:
    found, size = [], file.stat().st_size
    with file.open("rb") as stream:
        while stream.tell() < size:
            found.append(np.load(stream, allow_pickle=False))
    return found


def summary(folder: Path) -> Tree:
    """What a checkpoint says of itself; `fields`: of its run, if it is of one."""
    manifest = load_json(folder / "manifest.json")
    fields = load_json(folder / "training.json") if "training.json" in manifest["files"] else None
    return {"config": load_json(folder / "config.json"), "dtype": manifest["dtype"], "fields": fields}


def _tensors_of(folder: Path, *, is_moments: bool) -> dict[str, np.ndarray]:
    others = "config.json", "training.json", "tokenizer.json"
    found: dict[str, np.ndarray] = {}
    for name in load_json(folder / "manifest.json")["files"]:
        if name not in others and name.startswith("optimizer-") == is_moments:
            found |= tensors(folder / name)
    return found


def weights(folder: Path) -> list[Any]:
    return [summary(folder)["config"], _tensors_of(folder, is_moments=False)]


def exported(folder: Path) -> list[Any]:
    """A folder for transformers: config, arrays by canonical name, and the tokenizer."""
    index, found = folder / "model.safetensors.index.json", {}
    whole = {"": "model.safetensors"}
    for file in {*(load_json(index)["weight_map"] if index.exists() else whole).values()}:
        found |= tensors(folder / file)
    arrays = {
        name.removesuffix(".weight"): array.T if array.ndim == 2 and name != "embedding.weight" else array
        for name, array in found.items()
    }
    tokenizer = folder / "tokenizer.json"
    content = tokenizer.read_bytes() if tokenizer.exists() else None
    return [load_json(folder / "config.json")["palm"], arrays, content]


def progress(folder: Path) -> list[Any]:
    fields, moments = summary(folder)["fields"], _tensors_of(folder, is_moments=True)
    return [*weights(folder), {"fields": fields, "moments": moments}]


def run(folder: Path) -> Tree:
    settings = load_json(folder / "run.json")
    return {name: settings[name] for name in ("config", "recipe", "backend", "device", "attention")}


def bundle(folder: Path) -> Tree:
    header = load_json(folder / "bundle.json")
    told = {name: header[name] for name in ("label", "dtype", "environment", "config") if name in header}
    for name, array in tensors(folder / "arrays.safetensors").items():
        group, _, rest = name.partition("/")
        told.setdefault(group, {}).update({rest: array}) if rest else told.update({name: array})
    return told


def trace(folder: Path) -> Tree:
    arrays = npz(folder / "t.trace")
    about = json.loads(arrays["about"].tobytes())
    told = {name: arrays[name] for name in ("fingerprints", "moved", "rounding")}
    told |= {name: about[name] for name in ("label", "dtype", "operations")}
    return told | {"results": {name: arrays[f"result {name}"] for name in about["outputs"]}}


def shards(folder: Path) -> np.ndarray:
    manifest = load_json(folder / SHARDS)
    files = [folder / f"shard-{index:05}.npy" for index in range(len(manifest["shards"]))]
    rows = [np.frombuffer(file.read_bytes()[NPY_HEADER:], manifest["dtype"]) for file in files]
    return np.concatenate(rows).astype(np.int64)


def info(folder: Path) -> dict[str, str]:
    """What `palm info` shows of a run's newest checkpoint."""
    told = summary(max(folder.glob("step-*")))
    shown = {**told["config"], "dtype": told["dtype"]}
    if told["fields"] is not None:
        steps = load_json(folder / "run.json")["recipe"]["steps"]
        shown["step"] = f"{told['fields']['step']} of {steps}"
    return {name: entries.number(str(value)) for name, value in shown.items() if value is not None}


def reseal(changed: Path) -> None:
    """Make manifest.json, run.json or bundle.json fit what has changed, as far as it can be parsed."""
    beside = [changed.parent / name for name in ("manifest.json", "run.json", "bundle.json")]
    [header] = filter(Path.exists, beside)
    content = load_json(header)
    if header.name == "run.json" and changed.suffix == ".json" and changed != header:
        content["data"]["tokenizer_digest"] = hashlib.sha256(changed.read_bytes()).hexdigest()
    elif changed != header:
        entry = content["arrays"] if header.name == "bundle.json" else content["files"][changed.name]
        entry.update(entry_of_pieces(changed) if "header" in entry else fingerprint(changed))
        if "tensors" in entry:
            entry["tensors"] = _checksums(changed.read_bytes()) or entry["tensors"]
    content.pop("seal", None)
    header.write_text(sealed(content), "utf-8")


def reseal_shards(changed: Path) -> None:
    header = changed.parent / SHARDS
    content = load_json(header)
    if changed.suffix == ".npy":
        content["shards"][int(changed.stem[-5:])].update(fingerprint(changed))
    elif changed != header:
        content["tokenizer"]["digest"] = fingerprint(changed)["sha256"]
    content.pop("seal", None)
    header.write_text(sealed(content), "utf-8")


def _checksums(content: bytes) -> dict[str, int]:
    with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
        length = int.from_bytes(content[:8], "little")
        rows, data = json.loads(content[8 : 8 + length]), content[8 + length :]
        return {name: zlib.crc32(data[slice(*row["data_offsets"])]) for name, row in rows.items()}
    return {}


def reseal_trace(changed: Path) -> None:
    arrays = npz(changed)
    arrays.pop("sha256", None)
    arrays["sha256"] = np.frombuffer(_digest(arrays).encode(), np.uint8)
    with changed.open("wb") as file:
        np.savez(file, **arrays)
