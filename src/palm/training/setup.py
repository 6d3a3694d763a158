"""What a run starts from, or goes on from: its data, its tokenizer, its folder and its place."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

from palm.backends import ATTENTION_PATHS
from palm.checkpoint.team import check_listable
from palm.checkpoint.tokenizer import kept_file
from palm.config import Backend, PaLMConfig
from palm.data.corpus import Corpus, open_corpus
from palm.data.tokenizer import ByteTokenizer, Tokenizer, default_tokenizer, load_tokenizer, vocabulary_size
from palm.data.windows import check_vocabulary
from palm.errors import ConfigError, DataError, RunError
from palm.recipes import Recipe
from palm.spec.mesh import AnyMesh, Mesh, check_batch, mesh_of
from palm.spec.parameters import check_weights, frozen
from palm.spec.sizes import check_cache, check_training
from palm.training.cadence import Cadence
from palm.training.follower import Follower
from palm.training.run_folder import Run
from palm.training.start import Start
from palm.wings import Wing


def check_given(config: Any, recipe: Any, start: Start, backend: Backend) -> None:
    """Raise `ConfigError` unless these are a config, that of the checkpoint if there is one, and a recipe.

    And `WeightsError` for arrays of another config.
    """
    kinds = (("config", config, PaLMConfig, 'preset("tiny")'), ("recipe", recipe, Recipe, 'recipe("bytes")'))
    for name, value, kind, make in kinds:
        if not isinstance(value, kind):
            raise ConfigError(
                f"{name} must be a {kind.__name__}; got {name}={value!r}. Make one with palm.{make}."
            )
    start.check_config(config.resolve(backend))
    if start.arrays is not None:
        check_weights(config, start.arrays, backend)


def check_room(config: PaLMConfig, recipe: Recipe, cadence: Cadence) -> None:
    """Raise `ConfigError` for a training, or its samples, that do not fit into this machine's memory."""
    micro = recipe.batch // recipe.accumulate
    sizes = {"batch": recipe.batch, "micro": micro, "length": recipe.length}
    check_training(config, recipe.master, **sizes, copied=cadence.save_behind)
    check_cache(config, batch=1, length=cadence.sample_tokens)


def check_batches(recipe: Recipe, mesh: Mesh) -> None:
    """Raise `ConfigError` unless every batch of the run can be shared out evenly."""
    for batch in (recipe.batch, *(size for _, size in recipe.ramp)):
        check_batch(batch, recipe.accumulate, mesh)


def check_fits(
    implementation: Wing[Any],
    config: PaLMConfig,
    recipe: Recipe,
    cadence: Cadence,
    device: Any,
    mesh: AnyMesh,
) -> None:
    """Raise `ConfigError` for a training that does not fit into memory, the mesh or the model's weights.

    And `CheckpointError` for one whose checkpoints could not list their pieces.
    """
    if implementation.weights.is_on_host(device) and not implementation.several():
        check_room(config, recipe, cadence)
    frozen(config, recipe.freeze)  # which lists all weights
    check_batches(recipe, mesh_of(mesh))
    check_listable(config, mesh_of(mesh), with_moments=True)


def open_data(data: Any, tokenizer: Any, config: PaLMConfig) -> tuple[Corpus, Tokenizer | None]:
    """The data, and the tokenizer of the model; None for ids of which nobody says what text they are.

    Shards have their own, and need no package that reads it.
    """
    given = None if tokenizer is None else load_tokenizer(tokenizer)
    if given is not None:
        vocabulary_size(given, config.num_tokens)
    corpus = open_corpus(_located(data), given)
    known = given or corpus.tokenizer
    if known is not None and corpus.largest_possible >= config.num_tokens:
        vocabulary_size(known, config.num_tokens)
    check_vocabulary(corpus, config.num_tokens)
    is_text = math.isfinite(corpus.bytes_per_token)
    return corpus, known or (ByteTokenizer() if is_text else default_tokenizer(config.num_tokens))


def _located(data: Any) -> Any:
    """Data as `open_corpus` takes it. Here a str is a path: `DataError` if nothing is there."""
    if not isinstance(data, str):
        return data
    if not os.path.exists(data):
        raise DataError(
            f"data must be a readable file or folder; got data={shorten(data, 60)!r}, and there is none of "
            "that name. If it is the text itself, pass bytes: text.encode()."
        )
    return Path(data)


def open_data_again(source: Any, settings: Mapping[str, Any], encoder: Tokenizer | None, run: Run) -> Corpus:
    """The data that a run was trained on."""
    if source is None:
        raise RunError(
            f"data must be given because {run.path} was trained on data without a path. Pass it again."
        )
    corpus = open_corpus(_located(source), encoder)
    if corpus.digest != settings["data"]["digest"]:
        raise RunError(
            f"data must be what the run was trained on; got data={corpus.name}, which differs. "
            "Restore it, or start a new run."
        )
    return corpus


def new_run(out: str | os.PathLike[str] | None, data: Any, recipe: Recipe, *, is_first: bool) -> Run | None:
    """The folder of a new run, not made yet, as this process sees it; None without `out`."""
    if out is None and recipe.non_finite == "rewind":
        raise ConfigError(
            'out must be given because non_finite="rewind" goes back to checkpoints; got out=None. '
            "Pass a folder."
        )
    run = None if out is None else run_of(out, is_first=is_first)
    if run is not None and is_path(data) and run.path.resolve().is_relative_to(Path(data).resolve()):
        raise RunError(
            f"out must be outside of data, which it would change; got out={out}, data={data}. "
            "Choose another folder."
        )
    return run


def run_of(path: str | os.PathLike[str], *, is_first: bool) -> Run:
    """The folder of a run as this process sees it."""
    return Run(Path(path)) if is_first else Follower(Path(path))


def place_again(
    settings: Mapping[str, Any], backend: Backend, device: Any, attention: str | None
) -> tuple[Any, str]:
    """Where a run goes on and by which attention path, as far as its old ones carry over."""
    if device is None and (backend == settings["backend"] or settings["device"] == "cpu"):
        device = settings["device"]
    if attention is None:
        attention = settings["attention"]
        shared = all(attention in paths for paths in ATTENTION_PATHS.values())
        moved = (backend, device) != (settings["backend"], settings["device"])
        if attention not in ATTENTION_PATHS[backend] or (moved and not shared):
            attention = "auto"
    return device, attention


def settings_of(
    config: PaLMConfig,
    recipe: Recipe,
    cadence: Cadence,
    data: Any,
    corpus: Corpus,
    tokenizer: Any,
    encoder: Tokenizer | None,
) -> dict[str, Any]:
    """What run.json says of the model, the recipe and the data."""
    file = kept_file(encoder)
    origin = str(Path(tokenizer).resolve()) if is_path(tokenizer) and file else file and file.file
    return {
        "config": config.to_dict(),
        "recipe": recipe.to_dict(),
        "cadence": dataclasses.asdict(cadence),
        "data": {
            "path": str(Path(data).resolve()) if is_path(data) else None,
            "digest": corpus.digest,
            "tokenizer": origin,
            "tokenizer_digest": encoder and encoder.digest,
        },
    }


def placement(backend: Backend, device: Any, attention: str) -> dict[str, Any]:
    """What run.json says of where the run is."""
    return {
        "backend": backend,
        "device": None if device is None else str(device),
        "attention": attention,
    }


def is_path(data: Any) -> bool:
    """Whether data, or a tokenizer, is given by its place on disk."""
    return isinstance(data, (str, os.PathLike))
