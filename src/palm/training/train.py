"""Train a model in either backend: one loop, one data order, one checkpoint. The step is the wing's."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from palm.backends import placed, wing
from palm.checkpoint.tokenizer import kept_file
from palm.config import Backend, PaLMConfig
from palm.errors import RunError
from palm.fields import from_fields
from palm.recipes import Recipe
from palm.spec.mesh import AnyMesh
from palm.training.alike import check_same_run, told_of_start
from palm.training.cadence import Cadence
from palm.training.loggers import AnyLogger
from palm.training.loop import Loop
from palm.training.onlookers import make_onlookers
from palm.training.run_folder import Run
from palm.training.setup import (
    check_fits,
    check_given,
    is_path,
    new_run,
    open_data,
    open_data_again,
    place_again,
    placement,
    run_of,
    settings_of,
)
from palm.training.start import Weights, open_start, turns
from palm.training.stopping import asked_to_stop
from palm.training.trained import OnStep, Trained

if TYPE_CHECKING:
    from palm.backends import JaxModel, Model, TorchModel


@overload
def train(
    config: PaLMConfig,
    recipe: Recipe,
    data: Any,
    *,
    backend: Literal["torch"],
    out: str | os.PathLike[str] | None = ...,
    tokenizer: Any = ...,
    weights: Weights = ...,
    cadence: Cadence | None = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str = ...,
    on_step: OnStep = ...,
    loggers: Sequence[AnyLogger] = ...,
    profile: str | int | None = ...,
) -> Trained[TorchModel]: ...


@overload
def train(
    config: PaLMConfig,
    recipe: Recipe,
    data: Any,
    *,
    backend: Literal["jax"],
    out: str | os.PathLike[str] | None = ...,
    tokenizer: Any = ...,
    weights: Weights = ...,
    cadence: Cadence | None = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str = ...,
    on_step: OnStep = ...,
    loggers: Sequence[AnyLogger] = ...,
    profile: str | int | None = ...,
) -> Trained[JaxModel]: ...


@overload
def train(
    config: PaLMConfig,
    recipe: Recipe,
    data: Any,
    *,
    backend: Backend,
    out: str | os.PathLike[str] | None = ...,
    tokenizer: Any = ...,
    weights: Weights = ...,
    cadence: Cadence | None = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str = ...,
    on_step: OnStep = ...,
    loggers: Sequence[AnyLogger] = ...,
    profile: str | int | None = ...,
) -> Trained[Model]: ...


def train(
    config: PaLMConfig,
    recipe: Recipe,
    data: Any,
    *,
    backend: Backend,
    out: str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
    weights: Weights = None,
    cadence: Cadence | None = None,
    device: Any = None,
    mesh: AnyMesh = None,
    attention: str = "auto",
    on_step: OnStep = lambda entry: None,
    loggers: Sequence[AnyLogger] = (),
    profile: str | int | None = None,
) -> Trained[Model]:
    """Train a model from `recipe.seed`, or from `weights`, arrays by name or a checkpoint's path, on `data`.

    `data` is a path to a file, a folder, a `.npy` of ids, or what `palm data tokenize` wrote; or text as
    bytes; an array of ids; or documents: an object with `__len__` and `__getitem__`, of arrays of ids or of
    rows with `input_ids`. With `tokenizer`, a file or an object (`palm.data.tokenizer.load_tokenizer`), text
    is encoded; without, that of the checkpoint is taken, and then tokens are bytes, or those of the tokenizer
    that came with the ids. It belongs to the run and to each checkpoint. `config.num_tokens` must hold it.

    With `out`, everything is kept in that new folder, and the run can go on from there in either backend
    (`palm.resume`). SIGINT, SIGTERM and SIGHUP end it after the step in progress, with a checkpoint. So does
    an error, which is raised then, if the weights are those of a whole step. `mesh` is as in `palm.build`:
    each process makes the same call, the first one writes, an error in one ends all without a checkpoint.

    `on_step` is called with each line of the log: step, loss (nats, of the batch before its update),
    grad_norm, lr, tokens (so far), tokens_per_s, seconds, and where they were measured val_loss and
    val_bits_per_byte. `loggers` take them too: "tensorboard", "wandb", "trackio", functions, objects like
    `palm.training.loggers.Logger`. `profile` traces steps into out/profile: "10-12" those, 3 so many after
    the first two. What fails in these ends no run (`Trained.failed`).
    Raises `ConfigError`, `DataError`, `RunError`, `DivergedError`, and what `palm.build` raises.
    """
    start = open_start(weights, mesh)
    check_given(config, recipe, start, backend)
    implementation = wing(backend)
    config, cadence, place = config.resolve(backend), cadence or Cadence(), placed(backend, device, mesh)
    check_fits(implementation, config, recipe, cadence, device, mesh)
    tokenizer = start.tokenizer if tokenizer is None else tokenizer
    corpus, encoder = open_data(data, tokenizer, config)
    run = new_run(out, data, recipe, is_first=implementation.is_first())
    where = placement(backend, device, attention)
    about = {"config": config.to_dict(), "recipe": recipe.to_dict(), **where}
    beside = make_onlookers(out, about, implementation, loggers, profile)
    with implementation.together(), asked_to_stop() as asked, run.locked(new=True) if run else nullcontext():
        check_same_run(implementation, config, recipe, cadence, mesh, corpus, start, kept=run is not None)
        told = told_of_start(implementation, start, backend, kept=run is not None)
        loop = Loop(run, config, recipe, cadence, corpus, encoder, backend, on_step, beside)
        trainer = implementation.Trainer(start.model(config, recipe, place, where), recipe)
        del start, weights  # steps need no second copy of the model
        if run is not None:
            loop.save(trainer)
            run.keep_tokenizer(kept_file(encoder))
            settings = settings_of(config, recipe, cadence, data, corpus, tokenizer, encoder)
            run.write_settings(settings | where | told)
        return loop.run(trainer, asked)


@overload
def resume(
    path: str | os.PathLike[str],
    *,
    backend: Literal["torch"],
    steps: int | None = ...,
    cadence: Cadence | None = ...,
    data: Any = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str | None = ...,
    on_step: OnStep = ...,
    loggers: Sequence[AnyLogger] = ...,
    profile: str | int | None = ...,
) -> Trained[TorchModel]: ...


@overload
def resume(
    path: str | os.PathLike[str],
    *,
    backend: Literal["jax"],
    steps: int | None = ...,
    cadence: Cadence | None = ...,
    data: Any = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str | None = ...,
    on_step: OnStep = ...,
    loggers: Sequence[AnyLogger] = ...,
    profile: str | int | None = ...,
) -> Trained[JaxModel]: ...


@overload
def resume(
    path: str | os.PathLike[str],
    *,
    backend: Backend | None = ...,
    steps: int | None = ...,
    cadence: Cadence | None = ...,
    data: Any = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str | None = ...,
    on_step: OnStep = ...,
    loggers: Sequence[AnyLogger] = ...,
    profile: str | int | None = ...,
) -> Trained[Model]: ...


def resume(
    path: str | os.PathLike[str],
    *,
    backend: Backend | None = None,
    steps: int | None = None,
    cadence: Cadence | None = None,
    data: Any = None,
    device: Any = None,
    mesh: AnyMesh = None,
    attention: str | None = None,
    on_step: OnStep = lambda entry: None,
    loggers: Sequence[AnyLogger] = (),
    profile: str | int | None = None,
) -> Trained[Any]:
    """Go on with the run in the folder `path` from its newest checkpoint; bit for bit in the same backend.

    In the other backend the same run goes on to rounding. `steps` lengthens or shortens the run (with the
    cosine schedule that changes the rate of each step); `cadence` is the one from now on; `data` says where
    the data is now, if it has moved: it must be the same, byte for byte. `device` and `attention` stay as
    they were; a device other than "cpu" does not carry over to the other backend, which takes its own first,
    and an attention path of one backend alone does not carry over to the other one or to another device.
    `mesh` may be another one each time. `loggers` and `profile` are as in `train`.
    Raises what `train` raises, and `CheckpointError`.
    """
    settings = Run(Path(path)).settings()
    recipe = Recipe.from_dict({**settings["recipe"], **({} if steps is None else {"steps": steps})})
    config = PaLMConfig.from_dict(settings["config"])
    cadence = cadence or from_fields(Cadence, settings["cadence"], "a cadence")
    backend = backend or settings["backend"]
    implementation = wing(backend)
    place = placed(backend, device, mesh)
    device, attention = place_again(settings, backend, device, attention)
    check_fits(implementation, config, recipe, cadence, device, mesh)
    run = run_of(path, is_first=implementation.is_first())
    encoder = run.tokenizer()
    source = data if data is not None else settings["data"]["path"]
    corpus = open_data_again(source, settings, encoder, run)
    told = {"recipe": recipe.to_dict(), "cadence": dataclasses.asdict(cadence)}
    source_now = {"path": str(Path(source).resolve())} if is_path(source) else {}
    told |= {**placement(backend, device, attention), "data": {**settings["data"], **source_now}}
    beside = make_onlookers(path, {**settings, **told}, implementation, loggers, profile)

    with implementation.together(), asked_to_stop() as asked, run.locked():
        check_same_run(implementation, config, recipe, cadence, mesh, corpus)
        loop = Loop(run, config, recipe, cadence, corpus, encoder, backend, on_step, beside)
        trainer = loop.restore(math.inf, device=device if place is None else place, attention=attention)
        if recipe.steps < loop.step:
            raise RunError(
                f"steps must be at least {loop.step}, the steps already made; got steps={recipe.steps}. "
                "Use more, or start a new run from an earlier checkpoint."
            )
        # After all that can fail: the run stays as it was until it can go on.
        run.write_settings({**settings, **told, **turns(settings, loop.step, backend)})
        run.keep_tokenizer(kept_file(encoder))
        return loop.run(trainer, asked)
