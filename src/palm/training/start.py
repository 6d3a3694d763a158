"""What a new run starts from, and what its settings keep of that."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from palm.checkpoint.checkpoint import load_arrays
from palm.checkpoint.locate import checkpoint_path
from palm.checkpoint.progress import summarise
from palm.checkpoint.tokenizer import checkpoint_tokenizer
from palm.config import Backend, PaLMConfig
from palm.data.tokenizer import Tokenizer
from palm.errors import ConfigError
from palm.files.streamed import blocks
from palm.models import build, from_numpy
from palm.recipes import Recipe

# Arrays by name, or the path of a checkpoint or a run; None: they are drawn from the recipe's seed.
Weights = Mapping[str, np.ndarray] | str | os.PathLike[str] | None


@dataclass(frozen=True)
class Start:
    """The arrays that a run starts from, and what their checkpoint has; nothing of drawn weights."""

    arrays: Mapping[str, np.ndarray] | None = None
    config: PaLMConfig | None = None
    tokenizer: Tokenizer | None = None
    checkpoint: Path | None = None
    origin: Mapping[str, str] = field(default_factory=dict)

    def model(self, config: PaLMConfig, recipe: Recipe, place: Any, where: Mapping[str, Any]) -> Any:
        """The model of step 0. Raises `ConfigError` for another config than the checkpoint's."""
        options = {name: where[name] for name in ("backend", "attention")}
        options |= {"dtype": recipe.master, "device": place}
        if self.arrays is None:
            return build(config, seed=recipe.seed, **options)
        own = {} if self.config is None else self.config.to_dict()
        for name, value in own.items():
            if getattr(config, name) != value:
                raise ConfigError(
                    "config must be that of the checkpoint in weights; got "
                    f"{name}={getattr(config, name)!r}, where the checkpoint has {value!r}. Pass its config, "
                    "or its weights as arrays."
                )
        return from_numpy(config, self.arrays, **options)

    @cached_property
    def digest(self) -> str | None:
        """`digest_of` the arrays, all of which are read for it, once."""
        return None if self.arrays is None else digest_of(self.arrays)

    def told(self, backend: Backend) -> dict[str, Any]:
        """What `run.json` keeps of it: the checkpoint, the digest of the weights, their origin."""
        found = turns({"turns": []}, 0, backend)
        if self.arrays is None:
            return found
        checkpoint = None if self.checkpoint is None else str(self.checkpoint.resolve())
        origin = {"origin": dict(self.origin)} if self.origin else {}
        return {**found, "start": {"checkpoint": checkpoint, "weights": self.digest, **origin}}


def open_start(weights: Weights) -> Start:
    """What is in a checkpoint, or in arrays by name. Raises `CheckpointError`."""
    if weights is None:
        return Start()
    if not isinstance(weights, (str, os.PathLike)):
        return Start(weights)
    path = checkpoint_path(weights)
    config, arrays = load_arrays(path)
    return Start(arrays, config, checkpoint_tokenizer(path), path, summarise(path).origin)


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
        digests = [*pool.map(lambda name: _digest(np.asarray(weights[name])), names)]
    return hashlib.sha256(json.dumps([*zip(names, digests, strict=True)]).encode()).hexdigest()


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    for block in blocks(array):
        digest.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
