"""The command that trains: `palm train`. A thin layer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from palm.backends import first_backend, keep_programs
from palm.checkpoint.checkpoint import load_arrays
from palm.cli.display import display
from palm.cli.flags import Attention, CadenceFlags, ModelFlags, RecipeFlags, given
from palm.config import Backend, PaLMConfig
from palm.errors import ConfigError, RunError
from palm.presets import preset as find_preset
from palm.recipes import Recipe
from palm.recipes import recipe as find_recipe
from palm.spec.sizes import describe
from palm.training.cadence import Cadence
from palm.training.hardware import keep_memory
from palm.training.loop import Trained
from palm.training.run_folder import PLOT, Run
from palm.training.train import resume as resume_run
from palm.training.train import train as train_run


def train(
    model: ModelFlags,
    training: RecipeFlags,
    cadence: CadenceFlags,
    backend: Backend | None = None,
    preset: str | None = None,
    recipe: str | None = None,
    data: Path | None = None,
    tokenizer: Path | None = None,
    checkpoint: Path | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    device: str | None = None,
    attention: Attention | None = None,
    compile_cache: Path | None = None,
    tensorboard: bool = False,
) -> int:
    """Train a model, or go on with a run, in either framework.

    Writes RUN/metrics.jsonl, RUN/step-…/, RUN/loss.png. Ctrl-C ends a run after the step in progress, with a
    checkpoint; --resume goes on from there. Single fields of model and recipe are changed by their flags.

    Args:
        backend: torch or jax (default: the first that is installed); the other one may take a run over.
        preset: Which model; palm info --help lists them. Default: small, as the backend's original has it.
        recipe: Which recipe: bytes (the default; learns on a CPU in minutes), adamw, or paper.
        data: Text: a file or a folder; or a .npy of token ids.
        tokenizer: A Hugging Face tokenizer.json or a SentencePiece .model; without one tokens are bytes.
        checkpoint: Start from the weights of this checkpoint, whose model is then the one trained.
        out: Folder of the new run.
        resume: Folder of a run to go on with.
        device: Where: cpu, cuda, gpu:1, …
        attention: Attention path: auto (the default), textbook, blockwise, sdpa, flex, cudnn, splash or
            pallas.
        compile_cache: Folder for compiled programs, which the next start takes from there (torch compiles on
            GPUs only).
        tensorboard: Also write RUN/tensorboard.
    """
    keep_memory()
    steps = training.steps
    if resume is not None:
        _only_without_resume(
            preset=preset, recipe=recipe, checkpoint=checkpoint, out=out, tokenizer=tokenizer
        )
        settings = Run(resume).settings()
        _refuse_changes(model, PaLMConfig.from_dict(settings["config"]))
        _refuse_changes(training, Recipe.from_dict(settings["recipe"]))
        total = settings["recipe"]["steps"] if steps is None else steps
        keep_programs(compile_cache, backend or settings["backend"])
        with display(total, resume if tensorboard else None) as on_step:
            return _tell(
                resume_run(
                    resume,
                    backend=backend,
                    steps=steps,
                    cadence=Cadence(**{**settings["cadence"], **given(cadence)}),
                    data=data,
                    device=device,
                    attention=attention,
                    on_step=on_step,
                )
            )
    if data is None or out is None:
        missing = (
            "--data and --out" if data is None and out is None else "--data" if data is None else "--out"
        )
        raise ConfigError(f"a new run must have --data and --out; {missing} is missing. Or give --resume.")
    weights = None
    if checkpoint is None:
        config = find_preset(preset or "small", **given(model))
    else:
        config, weights = load_arrays(checkpoint)
        if preset is not None or given(model):
            raise ConfigError("a checkpoint brings its own model; got model flags as well. Leave those out.")
    chosen = find_recipe(recipe or "bytes", **given(training))
    backend = backend or first_backend()
    keep_programs(compile_cache, backend)
    size = describe(config.resolve(backend), chosen.length).total
    print(
        f"{size:,} parameters in {backend}; {chosen.steps} steps of {chosen.batch} × {chosen.length} tokens "
        f"by {chosen.optimizer} at {chosen.learning_rate:g}; {data} → {out}",
        file=sys.stderr,
    )
    with display(chosen.steps, out if tensorboard else None) as on_step:
        return _tell(
            train_run(
                config,
                chosen,
                data,
                backend=backend,
                out=out,
                tokenizer=tokenizer,
                weights=weights,
                cadence=Cadence(**given(cadence)),
                device=device,
                attention=attention or "auto",
                on_step=on_step,
            )
        )


def _refuse_changes(flags: Any, own: PaLMConfig | Recipe) -> None:
    changed = [
        f"{name}={value!r} for {getattr(own, name)!r}"
        for name, value in given(flags).items()
        if name != "steps" and value != getattr(own, name)
    ]
    if changed:
        raise RunError(
            f"a resumed run must keep its model and recipe but for --steps; got {', '.join(changed)}. "
            "Start a new run from its checkpoint: --checkpoint RUN/step-…."
        )


def _only_without_resume(**options: Any) -> None:
    named = [f"--{name}" for name, value in options.items() if value is not None]
    if named:
        raise RunError(f"--resume must come without {', '.join(named)}; the run has its own. Leave them out.")


def _tell(trained: Trained[Any]) -> int:
    assert trained.path is not None
    if trained.interrupted:
        told = f"stopped after step {trained.step}; go on with: palm train --resume {trained.path}"
    else:
        told = f"all {trained.step} steps are made; {trained.path / PLOT}"
    print(told, file=sys.stderr)
    return 0
