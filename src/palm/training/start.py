"""What a new run starts from, and what its settings keep of that."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from palm.checkpoint.boxes import Boxes
from palm.checkpoint.checkpoint import load_arrays, load_onto
from palm.checkpoint.locate import checkpoint_path
from palm.checkpoint.progress import summarise
from palm.checkpoint.tokenizer import checkpoint_tokenizer
from palm.config import Backend, PaLMConfig
from palm.data.tokenizer import Tokenizer
from palm.errors import ConfigError
from palm.files.streamed import blocks
from palm.models import build, from_numpy
from palm.recipes import Recipe
from palm.spec.mesh import AnyMesh, mesh_of
from palm.spec.parameters import parameters
from palm.wings import Wing

# Arrays by name, or the path of a checkpoint or a run; None: they are drawn from the recipe's seed.
Weights = Mapping[str, np.ndarray] | str | os.PathLike[str] | None


@dataclass(frozen=True)
class Start:
    """What a run starts from, and what its checkpoint has; nothing of drawn weights.

    `arrays`: all weights; or `boxes`: the checkpoint, of which each process reads what its devices need.
    """

    arrays: Mapping[str, np.ndarray] | None = None
    boxes: Boxes | None = None
    config: PaLMConfig | None = None
    tokenizer: Tokenizer | None = None
    checkpoint: Path | None = None
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """In words, what was given. Processes may form a digest together only of what is of one kind."""
        if self.boxes is not None:
            return f"a checkpoint with the seal {self.boxes.seal}"
        return "none" if self.arrays is None else "arrays"

    def check_config(self, config: PaLMConfig) -> None:
        """Raise `ConfigError` for another config than the checkpoint's."""
        own = {} if self.config is None else self.config.to_dict()
        for name, value in own.items():
            if getattr(config, name) != value:
                raise ConfigError(
                    "config must be that of the checkpoint in weights; got "
                    f"{name}={getattr(config, name)!r}, where the checkpoint has {value!r}. Pass its config, "
                    "or its weights as arrays."
                )

    def model(self, config: PaLMConfig, recipe: Recipe, place: Any, where: Mapping[str, Any]) -> Any:
        """The model of step 0, of a config that `check_config` passed."""
        options = {name: where[name] for name in ("backend", "attention")} | {"dtype": recipe.master}
        if self.boxes is not None:
            return load_onto(self.boxes, place, **options)
        if self.arrays is not None:
            return from_numpy(config, self.arrays, device=place, **options)
        return build(config, seed=recipe.seed, device=place, **options)

    def digest(self, processes: Wing[Any]) -> str | None:
        """`digest_of` the weights, all of which are read for it. Of several processes all must ask, for each
        reads its share of a checkpoint."""
        if self.boxes is not None:
            return digest_of_boxes(self.boxes, processes)
        return None if self.arrays is None else digest_of(self.arrays)

    def told(self, backend: Backend, digest: str | None) -> dict[str, Any]:
        """What `run.json` keeps of it: the checkpoint, the digest of the weights, their origin."""
        found = turns({"turns": []}, 0, backend)
        if digest is None:
            return found
        checkpoint = None if self.checkpoint is None else str(self.checkpoint.resolve())
        origin = {"origin": dict(self.origin)} if self.origin else {}
        return {**found, "start": {"checkpoint": checkpoint, "weights": digest, **origin}}


def open_start(weights: Weights, mesh: AnyMesh = None) -> Start:
    """What is in a checkpoint, or in arrays by name. Raises `CheckpointError`.

    All weights are read and verified, unless they go to a mesh of several devices.
    """
    if weights is None:
        return Start()
    if not isinstance(weights, (str, os.PathLike)):
        return Start(weights)
    path = checkpoint_path(weights)
    boxes = Boxes(path) if mesh_of(mesh).size > 1 else None
    config, arrays = (boxes.config, None) if boxes else load_arrays(path)
    return Start(arrays, boxes, config, checkpoint_tokenizer(path), path, summarise(path).origin)


def turns(settings: Mapping[str, Any], step: int, backend: Backend) -> dict[str, Any]:
    """What `run.json` says of the frameworks that make the steps, if `backend` makes those after `step`.

    Of a run of an older version, which does not say who made the steps so far, nothing.
    """
    if "turns" not in settings:
        return {}
    kept = [turn for turn in settings["turns"] if turn["after"] < step]
    if not kept or kept[-1]["backend"] != backend:
        kept.append({"after": step, "backend": backend})
    return {"turns": kept}


def digest_of(weights: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names, dtypes, shapes and all numbers, of several arrays at once."""
    names = sorted(weights)
    with ThreadPoolExecutor() as pool:
        digests = [*pool.map(lambda name: _digest_of_array(np.asarray(weights[name])), names)]
    return _joined(names, digests)


def digest_of_boxes(boxes: Boxes, processes: Wing[Any]) -> str:
    """`digest_of` the weights of a checkpoint. Each process reads some tensors, some rows at a time."""
    names = sorted(parameters(boxes.config))
    number, count = processes.numbered()
    own = range(number, len(names), count)
    found = np.zeros((len(names), hashlib.sha256().digest_size), np.uint8)
    with ThreadPoolExecutor() as pool:
        digests = pool.map(
            lambda row: _digest(boxes.dtype, boxes.shapes[names[row]], boxes.rows(names[row])), own
        )
        for row, digest in zip(own, digests, strict=True):
            found[row] = np.frombuffer(digest, np.uint8)
    return _joined(names, [row.tobytes() for row in processes.greatest(found)])


def _joined(names: list[str], digests: Iterable[bytes]) -> str:
    told = [(name, digest.hex()) for name, digest in zip(names, digests, strict=True)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _digest_of_array(array: np.ndarray) -> bytes:
    return _digest(array.dtype, array.shape, [array])


def _digest(dtype: np.dtype, shape: tuple[int, ...], parts: Iterable[np.ndarray]) -> bytes:
    """Of an array that comes in parts, row after row."""
    digest = hashlib.sha256(f"{dtype} {shape}".encode())
    for block in (block for part in parts for block in blocks(part)):
        digest.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return digest.digest()
