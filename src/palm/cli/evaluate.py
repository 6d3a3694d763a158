"""The command that evaluates models: `palm eval`. A thin layer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg

from palm.backends import first_backend
from palm.checkpoint.checkpoint import load
from palm.cli.display import Terminal
from palm.cli.flags import Attention, Optional, Request, default
from palm.cli.text import find_checkpoint
from palm.config import Backend
from palm.errors import ConfigError, TokenError
from palm.files.names import visible
from palm.training.evaluation import LENGTH, Evaluation
from palm.training.evaluation import evaluate as evaluate_text
from palm.training.harness import evaluate_tasks
from palm.training.run_folder import Run


@dataclass(frozen=True, kw_only=True)
class EvalRequest:
    """What `palm eval` is asked for."""

    models: Positional[Annotated[tuple[Path, ...], arg(metavar="MODEL [OTHER]")]]
    """Folders of runs, RUN/best, or checkpoints: one, or two to compare."""
    text: Annotated[Path | None, Optional] = None
    """A file, a folder, what palm data tokenize wrote, or a .npy file of token ids."""
    tasks: Annotated[tuple[str, ...], Optional] = ()
    """Tasks of lm-eval, in place of a text, on one model."""
    include: Annotated[Path | None, Optional] = None
    """Folder with lm-eval tasks of your own."""
    backend: Annotated[Backend | None, default("the one that trained the run")] = None
    """The framework that computes."""
    length: Annotated[int | None, default(f"that of the first run's recipe, or {LENGTH}")] = None
    """Tokens in each window."""
    stride: Annotated[int | None, default("the length")] = None
    """Tokens that each window but the first predicts. They see at least length - stride + 1 tokens."""
    batch: Annotated[int | None, default("16, or fewer of a large vocabulary")] = None
    """Windows that are computed at once."""
    tokenizer: Annotated[str | None, default("the one that the model was trained with")] = None
    """A Hugging Face tokenizer.json, a SentencePiece .model, or bytes."""
    device: Annotated[str | None, default("the backend's")] = None
    """Where to compute: cpu, cuda, gpu:1, …"""
    attention: Attention = "auto"
    """The attention path."""
    json: bool = False
    """Print the numbers as JSON."""


def evaluate(request: Request[EvalRequest]) -> int:
    """Say how well a model predicts a text: nats per token, perplexity, bits per byte; or which of two does.

    Each token but the first is predicted once. The standard error is over windows,
    as if these were independent.

    Of two models the gap between their losses is told as well, with a paired bootstrap over windows: whether
    it is noise. Both must have the same tokenizer.

    With --tasks, lm-eval asks one model its tasks instead. It may download their data.
    """
    if not 1 <= len(request.models) <= 2:
        raise ConfigError(f"models must be one or two; got {len(request.models)}. Name one or two.")
    if (request.text is None) == (not request.tasks):
        raise ConfigError("palm eval must have either --text or --tasks; got both or none. Give one of them.")
    length = _length_of(request.models[0]) if request.length is None else request.length
    if request.text is None:
        return _evaluate_tasks(request, length)
    found = [_evaluated(request, request.text, path, length) for path in request.models]
    gap = found[0].against(found[1]) if len(found) == 2 else None
    names = [str(path) for path in request.models]
    if request.json:
        models = [{"model": name, **one.to_dict()} for name, one in zip(names, found, strict=True)]
        print(json.dumps({"models": models, "gap": gap and gap.to_dict()}, indent=1))
        return 0
    _show(names, found)
    if gap is not None:
        Terminal().print(gap.told(*names), highlight=False, markup=False)
    return 0


def _evaluated(request: EvalRequest, text: Path, path: Path, length: int) -> Evaluation:
    options: dict[str, Any] = {"length": length, "stride": request.stride, "batch": request.batch}
    model = _loaded(request, path)
    try:
        return evaluate_text(model, text, tokenizer=request.tokenizer, **options)
    except TokenError as error:  # of this model, and perhaps not of the other one
        raise TokenError(f"{path}: {error}") from None


def _loaded(request: EvalRequest, path: Path) -> Any:
    checkpoint, used = find_checkpoint(path, "last")
    backend = request.backend or first_backend(used)
    return load(checkpoint, backend=backend, device=request.device, attention=request.attention)


def _evaluate_tasks(request: EvalRequest, length: int) -> int:
    if len(request.models) > 1 or request.stride is not None:
        raise ConfigError("--tasks must come with one model and without --stride. Leave the others out.")
    [path] = request.models
    results = evaluate_tasks(
        _loaded(request, path),
        request.tasks,
        include=request.include,
        length=length,
        batch=request.batch,
        tokenizer=request.tokenizer,
    )
    if request.json:
        print(json.dumps({"model": str(path), "results": results}, indent=1, default=float))
        return 0
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for name in ("task", "metric", "value"):
        shown.add_column(name, justify="right" if name == "value" else "left", overflow="fold")
    for task, metrics in results.items():
        for metric, value in metrics.items():
            if isinstance(value, (int, float)):
                told = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
                shown.add_row(Text(visible(task)), Text(visible(metric)), told)
    Terminal().print(shown, highlight=False)
    return 0


def _length_of(path: Path) -> int:
    """The length of the windows that the model at `path` learned from, if it is of a run."""
    run = Run(path) if Run(path).is_run else Run(path.resolve().parent)
    return int(run.settings()["recipe"]["length"]) if run.is_run else LENGTH


def _show(names: list[str], found: list[Evaluation]) -> None:
    console, shown = Terminal(), Table(box=None, padding=(0, 2, 0, 0), header_style="")
    shown.add_column("model", overflow="fold")
    for name in ("nats/token", "± error", "perplexity", "bits/byte"):
        shown.add_column(name, justify="right", overflow="fold")
    for name, one in zip(names, found, strict=True):
        error, bits = one.standard_error, one.bits_per_byte
        numbers = f"{one.nats_per_token:.4f}", "" if error is None else f"{error:.4f}"
        shown.add_row(
            Text(visible(name)), *numbers, f"{one.perplexity:.4g}", "" if bits is None else f"{bits:.4f}"
        )
    console.print(shown, highlight=False)
    one = found[0]
    windows = f"{len(one.losses):,} windows of {one.length}, stride {one.stride}"
    told = f"{one.tokens:,} tokens of {one.text} in {windows}"
    console.print(told, highlight=False, markup=False)
