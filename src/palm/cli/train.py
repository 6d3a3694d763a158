"""The command that trains: `palm train`. A thin layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from palm.backends import first_backend, keep_programs, wing, wing_of
from palm.checkpoint.progress import summarise
from palm.checkpoint.tokenizer import checkpoint_tokenizer
from palm.cli.display import display, tell
from palm.cli.flags import (
    Attention,
    CadenceFlags,
    ModelFlags,
    Optional,
    PresetName,
    RecipeFlags,
    Request,
    default,
    given,
)
from palm.config import Backend, PaLMConfig
from palm.data.corpus import Corpus, open_corpus
from palm.data.tokenizer import load_tokenizer, vocabulary_size
from palm.errors import ConfigError, RunError
from palm.presets import preset as find_preset
from palm.recipes import Recipe
from palm.recipes import recipe as find_recipe
from palm.spec.mesh import mesh_of
from palm.spec.parameters import frozen, parameters
from palm.spec.sizes import describe
from palm.training.cadence import Cadence
from palm.training.hardware import keep_memory
from palm.training.loggers import LoggerName
from palm.training.run_folder import PLOT, Run
from palm.training.train import resume as resume_run
from palm.training.train import train as train_run
from palm.training.trained import OnStep, Trained
from palm.training.validation import check_trainable


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What `palm train` is asked for."""

    backend: Annotated[Backend | None, default("the first that is installed")] = None
    """The framework that trains. A run can be resumed in the other one."""
    preset: PresetName = None
    """The model to start from; palm info lists them. Its open choices are those of the backend's original."""
    recipe: Annotated[str | None, default("bytes")] = None
    """The recipe to start from: bytes (learns on a CPU in minutes), adamw or paper."""
    data: Annotated[Path | None, Optional] = None
    """The text of a new run: a file, a folder, what palm data tokenize wrote, or a .npy file of token ids."""
    out: Annotated[Path | None, Optional] = None
    """Folder of the new run."""
    resume: Annotated[Path | None, Optional] = None
    """Folder of a run to continue, instead of --data and --out."""
    tokenizer: Annotated[Path | None, default("the checkpoint's, or bytes")] = None
    """A Hugging Face tokenizer.json or a SentencePiece .model. Its size is the default of --num-tokens."""
    checkpoint: Annotated[Path | None, Optional] = None
    """Start from the model and the weights of this checkpoint; of a run: its newest, or RUN/best."""
    device: Annotated[str | None, default("the backend's")] = None
    """Where to compute: cpu, cuda, gpu:1, …"""
    mesh: Annotated[str | None, Optional] = None
    """Several devices in place of one, such as data=4,model=2. torch: one for each process of torchrun."""
    distributed: bool = False
    """Join the processes of a cluster (SLURM, TPU slices, JAX_COORDINATOR_ADDRESS, torchrun) before."""
    attention: Annotated[Attention | None, default("auto")] = None
    """The attention path. auto chooses the fastest for the device."""
    compile_cache: Annotated[Path | None, Optional] = None
    """Folder for compiled programs. The next start reads them instead of compiling (torch: on GPUs only)."""
    log: Annotated[tuple[LoggerName, ...], default("none")] = ()
    """Where the log goes as well: tensorboard (RUN/tensorboard), wandb (RUN/wandb, offline), trackio."""
    tensorboard: bool = False
    """The same as --log tensorboard."""
    profile: Annotated[str | None, Optional] = None
    """Steps to trace into RUN/profile: 10-12 those, 3 so many after the first two."""
    model: ModelFlags
    """These change single fields of the preset."""
    training: RecipeFlags
    """These change single fields of the recipe."""
    cadence: CadenceFlags
    """How often to save, validate and sample."""


def train(request: Request[TrainRequest]) -> int:
    """Train a model, or continue a run, in either framework.

    Writes RUN/metrics.jsonl, RUN/step-…/ and RUN/loss.png. Ctrl-C ends a run after the current step, with a
    checkpoint; --resume continues it. A plot, a display, a logger or a profile that fails does not end it.
    """
    keep_memory()
    trained = _start(request) if request.resume is None else _resume(request, request.resume)
    assert trained.path is not None
    if trained.interrupted:
        told = f"stopped after step {trained.step}; continue with: palm train --resume {trained.path}"
        if request.mesh is not None:
            told += f" --mesh {request.mesh}, in as many processes"
    else:
        told = f"finished all {trained.step} steps; {trained.path / PLOT}"
    if wing_of(trained.model).is_first():
        tell(*trained.failed, told)
    return 0


def _start(request: TrainRequest) -> Trained[Any]:
    """A new run."""
    data, out = request.data, request.out
    if data is None or out is None:
        missing = [f"--{name}" for name, value in (("data", data), ("out", out)) if value is None]
        raise ConfigError(
            f"a new run must have --data and --out; {' and '.join(missing)} is missing. Or give --resume."
        )
    tokenizer: Any = request.tokenizer
    if tokenizer is None and request.checkpoint is not None:
        tokenizer = checkpoint_tokenizer(request.checkpoint)
    recipe = find_recipe(request.recipe or "bytes", **given(request.training))
    backend = request.backend or first_backend()
    with _joined(request, backend) as is_first:
        if is_first:
            Run(out).check_new()
        text = open_corpus(data)
        config = _config(request, text)
        if tokenizer is None:  # with one, encoding tells
            check_trainable(text, recipe)
        keep_programs(request.compile_cache, backend)
        told = (
            f"{_sizes(config.resolve(backend), recipe)} in {backend}; "
            f"{recipe.steps} steps of {recipe.batch} × {recipe.length} tokens with "
            f"{recipe.optimizer} at learning rate {recipe.learning_rate:g}; {data} → {out}"
        )
        if is_first:
            tell(told)
        with _display(recipe.steps, is_first=is_first) as on_step:
            return train_run(
                config,
                recipe,
                data,
                backend=backend,
                out=out,
                tokenizer=tokenizer,
                weights=request.checkpoint,
                cadence=Cadence(**given(request.cadence)),
                device=request.device,
                mesh=request.mesh,
                attention=request.attention or "auto",
                on_step=on_step,
                **_beside(request),
            )


def _sizes(config: PaLMConfig, recipe: Recipe) -> str:
    """How many parameters there are, and how many of them are frozen."""
    told = f"{describe(config, recipe.length).total:,} parameters"
    names = frozen(config, recipe.freeze)
    if not names:  # the table has a row for each weight of each block: of a million blocks that takes long
        return told
    table = parameters(config)
    return f"{told}, {sum(table[name].size for name in names):,} of them frozen,"


@contextmanager
def _joined(request: TrainRequest, backend: Backend) -> Iterator[bool]:
    """Whether this process is the one that prints. torchrun's processes are joined unasked."""
    if not request.distributed and request.mesh is None:
        yield True
        return
    implementation = wing(backend)
    try:
        with implementation.together():
            if request.distributed or (backend == "torch" and mesh_of(request.mesh).size > 1):
                implementation.join()
            yield implementation.is_first()
    except BaseException:
        implementation.leave()
        raise


def _display(steps: int, *, is_first: bool) -> AbstractContextManager[OnStep]:
    return display(steps) if is_first else nullcontext(lambda entry: None)


def _beside(request: TrainRequest) -> dict[str, Any]:
    """Who follows the steps besides the display."""
    names = (*request.log, *(("tensorboard",) if request.tensorboard else ()))
    return {"loggers": list(dict.fromkeys(names)), "profile": request.profile}


def _config(request: TrainRequest, data: Corpus) -> PaLMConfig:
    """The config of a new run: that of the checkpoint, or of the preset with the changes."""
    changes = given(request.model)
    if request.checkpoint is None:
        if request.tokenizer is None and data.tokenizer is not None:
            changes.setdefault("num_tokens", data.largest_possible + 1)
        if request.tokenizer is not None:
            known = load_tokenizer(request.tokenizer)
            changes["num_tokens"] = vocabulary_size(known, changes.get("num_tokens"))
        return find_preset(request.preset or "small", **changes)
    if request.preset is not None or changes:
        raise ConfigError(
            "a checkpoint must come without --preset and flags of the model because it has its own model; "
            "got both. Leave one of them out."
        )
    return summarise(request.checkpoint).config


def _resume(request: TrainRequest, run: Path) -> Trained[Any]:
    """The run in that folder, continued."""
    only_new = {
        name: getattr(request, name) for name in ("preset", "recipe", "checkpoint", "out", "tokenizer")
    }
    named = [f"--{name}" for name, value in only_new.items() if value is not None]
    if named:
        raise RunError(f"--resume must come without {', '.join(named)}; the run has its own. Leave them out.")
    settings = Run(run).settings()
    _refuse_changes(request.model, PaLMConfig.from_dict(settings["config"]))
    _refuse_changes(request.training, Recipe.from_dict(settings["recipe"]))
    steps: int | None = request.training.steps
    keep_programs(request.compile_cache, request.backend or settings["backend"])
    total = settings["recipe"]["steps"] if steps is None else steps
    backend = request.backend or settings["backend"]
    with _joined(request, backend) as is_first, ExitStack() as shown:
        if is_first:
            tell(*_continues(Run(run), settings, backend, total))
        on_step = shown.enter_context(_display(total, is_first=is_first))
        return resume_run(
            run,
            backend=request.backend,
            steps=steps,
            cadence=Cadence(**{**settings["cadence"], **given(request.cadence)}),
            data=request.data,
            device=request.device,
            mesh=request.mesh,
            attention=request.attention,
            on_step=on_step,
            **_beside(request),
        )


def _continues(run: Run, settings: Mapping[str, Any], backend: Backend, total: int) -> list[str]:
    """Where a run goes on, and if it has another number of steps than before, what that does to its rate."""
    made = max(run.checkpoints(), default=None)
    if made is None:  # which is refused
        return []
    before = settings["backend"]
    told = f"continues at step {made} of {total}"
    told += f" ({before} before, {backend} now)" if backend != before else f" in {backend}"
    recipe = Recipe.from_dict(settings["recipe"])
    if not made < total or not made or total == recipe.steps:
        return [told]
    old, new = recipe.lr(made), dataclasses.replace(recipe, steps=total).lr(made + 1)
    if math.isclose(old, new, rel_tol=0.1):
        return [told]
    return [f"{told}; the learning rate goes from {old:.3g} to {new:.3g}: it follows the new number of steps"]


def _refuse_changes(flags: Any, own: PaLMConfig | Recipe) -> None:
    """Raise `RunError` for a flag that would change a resumed run; it may get other steps."""
    changed = [
        f"{name}={value!r}, but the run has {name}={getattr(own, name)!r}"
        for name, value in given(flags).items()
        if name != "steps" and value != getattr(own, name)
    ]
    if changed:
        raise RunError(
            f"a resumed run must keep its model and recipe, except --steps; got {'; '.join(changed)}. "
            "Start a new run from its checkpoint: --checkpoint RUN/step-…."
        )
