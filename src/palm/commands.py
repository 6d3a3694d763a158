"""The commands that train and use a model: `palm train`, `palm generate`, `palm data`. A thin layer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import Progress
from tyro.conf import Positional

from palm.backends import available_backends, wing
from palm.cadence import Cadence
from palm.checkpoint import load, load_arrays
from palm.config import Backend
from palm.corpora import fetch
from palm.display import display
from palm.errors import BackendError, ConfigError, DataError, RunError
from palm.flags import CadenceFlags, ModelFlags, RecipeFlags, given
from palm.generation import generate as generate_text
from palm.hardware import keep_memory
from palm.info import describe
from palm.loop import Trained
from palm.manifest import MANIFEST
from palm.presets import preset as find_preset
from palm.recipe import recipe as find_recipe
from palm.run import PLOT, Run
from palm.tokenizer import load_tokenizer
from palm.training import resume as resume_run
from palm.training import train as train_run


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
    attention: str | None = None,
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
        _refuse(model, training)
        _only_without_resume(
            preset=preset, recipe=recipe, checkpoint=checkpoint, out=out, tokenizer=tokenizer
        )
        settings = Run(resume).settings()
        total = settings["recipe"]["steps"] if steps is None else steps
        _keep_programs(compile_cache, backend or settings["backend"])
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
    backend = backend or _first_backend()
    _keep_programs(compile_cache, backend)
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


def generate(
    run: Positional[Path],
    /,
    prompt: str,
    backend: Backend | None = None,
    max_new_tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop: tuple[str, ...] = (),
    seed: int = 0,
    checkpoint: str = "last",
    device: str | None = None,
    weights: Literal["int8"] | None = None,
    compile_cache: Path | None = None,
    echo: bool = False,
    logprobs: Path | None = None,
) -> int:
    """Print what a trained model writes after a prompt: the text, as it comes, and nothing else.

    Args:
        run: Folder of a run, or a checkpoint.
        prompt: What to continue.
        backend: torch or jax; both write the same text from one seed. Default: what the run was trained in.
        max_new_tokens: Stop after so many tokens.
        temperature: Divides the logits; 0 always takes the likeliest token.
        top_k: Choose among the k likeliest.
        top_p: Choose among the likeliest that together reach this probability.
        min_p: Choose among those at least this share as likely as the likeliest.
        stop: Texts that end the output; they are not printed.
        seed: Draws the noise.
        checkpoint: Which of a run's: last, best, or a step.
        device: Where: cpu, cuda, gpu:1, …
        weights: int8 rounds the weights to eight bits, for less memory.
        compile_cache: Folder for compiled programs, which the next start takes from there (torch compiles on
            GPUs only).
        echo: Print the prompt first.
        logprobs: File for one line of JSON a token: its id and log-probability.
    """
    path, used, tokenizer = run, None, load_tokenizer(None)
    folder = Run(run) if Run(run).is_run else Run(run.resolve().parent)
    if folder.is_run:
        path = folder.checkpoint(checkpoint) if folder.path == run else run
        used = folder.settings()["backend"]
        tokenizer = folder.tokenizer()
    elif not (run / MANIFEST).exists():
        found = "" if run.exists() else ", and there is no such folder"
        raise RunError(
            f"run must be the folder of a run, or a checkpoint; got run={run}{found}. Look at its path."
        )
    chosen = backend or _first_backend(used)
    _keep_programs(compile_cache, chosen)
    model = load(path, backend=chosen, device=device)

    def say(row: int, piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    if echo:
        say(0, prompt)
    generation = generate_text(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        stop=stop,
        seed=seed,
        weights=weights,
        tokenizer=tokenizer,
        on_text=say,
    )
    if sys.stdout.isatty():
        say(0, "\n")
    if logprobs is not None:
        pairs = zip(generation.tokens.tolist(), generation.logprobs.tolist(), strict=True)
        lines = [json.dumps({"token": token, "logprob": logprob}) + "\n" for token, logprob in pairs]
        try:
            logprobs.write_text("".join(lines), encoding="utf-8")
        except OSError as error:
            raise DataError(f"logprobs must be a writable file; got {logprobs}: {error.strerror}.") from None
    return 0


def data(
    action: Positional[Literal["fetch"]], name: Positional[str], folder: Positional[Path] = Path(), /
) -> int:
    """Fetch a public corpus: `palm data fetch enwik8`. A copy that is there is verified, not fetched again.

    Args:
        action: fetch.
        name: enwik8.
        folder: Where to put it.
    """
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=None)
        path = fetch(
            name, folder, on_progress=lambda done, total: progress.update(task, completed=done, total=total)
        )
    print(path)
    return 0


def _keep_programs(folder: Path | None, backend: Backend) -> None:
    if folder is not None:
        wing(backend).keep_programs(folder)


def _refuse(*flags: Any) -> None:
    changed = [name for group in flags for name in given(group) if name != "steps"]
    if changed:
        raise RunError(
            f"a resumed run must keep its model and recipe but for --steps; got {', '.join(changed)}. "
            "Start a new run from its checkpoint: --checkpoint RUN/step-…."
        )


def _only_without_resume(**options: Any) -> None:
    named = [f"--{name}" for name, value in options.items() if value is not None]
    if named:
        raise RunError(f"--resume must come without {', '.join(named)}; the run has its own. Leave them out.")


def _first_backend(wanted: Backend | None = None) -> Backend:
    here = available_backends()
    if not here:
        raise BackendError('backend must be installed; got none. Run: pip install "palm-dual[torch]".')
    return wanted if wanted in here else here[0]


def _tell(trained: Trained) -> int:
    assert trained.path is not None
    if trained.interrupted:
        told = f"stopped after step {trained.step}; go on with: palm train --resume {trained.path}"
    else:
        told = f"all {trained.step} steps are made; {trained.path / PLOT}"
    print(told, file=sys.stderr)
    return 0
