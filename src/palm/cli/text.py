"""The command that writes text: `palm generate`. A thin layer."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from palm.backends import config_of, first_backend, keep_programs
from palm.checkpoint.checkpoint import load
from palm.checkpoint.locate import checkpoint_path
from palm.checkpoint.manifest import MANIFEST
from palm.cli.flags import Attention, Optional, Request, default
from palm.cli.prompts import STANDARD_INPUT, Prompts, line_of, read_prompts
from palm.config import Backend
from palm.errors import ConfigError, DataError, RunError
from palm.fields import integer
from palm.files.names import visible
from palm.files.write import remedy, replace_file
from palm.generation.generate import Prompt, check_room, tokenizer_for
from palm.generation.generate import generate as generate_text
from palm.generation.rows import Generation
from palm.training.run_folder import SETTINGS, Run


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """What `palm generate` is asked for."""

    run: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Folder of a run, RUN/best, or a checkpoint."""
    prompt: Annotated[str | None, Optional] = None
    """The text to continue. This or --prompts must be given."""
    prompts: Annotated[str | None, Optional] = None
    """A file of prompts: text, one a line; or .jsonl, objects with a "prompt". - is standard input."""
    batch: Annotated[int | None, default("8")] = None
    """How many prompts of --prompts to continue at once. More are faster, and need more memory."""
    backend: Annotated[Backend | None, default("the one that trained the run")] = None
    """The framework that computes. Both write the same text from one seed."""
    max_new_tokens: int = 200
    """Largest number of tokens to write."""
    temperature: float = 1.0
    """Divides the logits. 0 always takes the most likely token."""
    top_k: Annotated[int | None, default("all")] = None
    """Choose among the k most likely tokens."""
    top_p: Annotated[float | None, default("1")] = None
    """Choose among the most likely tokens that together reach this probability."""
    min_p: Annotated[float | None, default("0")] = None
    """Choose among the tokens that have at least this share of the probability of the most likely one."""
    stop: Annotated[tuple[str, ...], default("none")] = ()
    """Texts that end the output. They are not printed."""
    stop_tokens: Annotated[tuple[int, ...], default("none")] = ()
    """Token ids that end the output."""
    seed: int = 0
    """Seed of the random numbers."""
    tokenizer: Annotated[str | None, default("the one that the model was trained with")] = None
    """A Hugging Face tokenizer.json, a SentencePiece .model, or bytes."""
    checkpoint: str = "last"
    """Which checkpoint of a run: last, best (of the lowest validation loss), or a step."""
    device: Annotated[str | None, default("the backend's")] = None
    """Where to compute: cpu, cuda, gpu:1, …"""
    attention: Attention = "auto"
    """The attention path that reads the prompt. New tokens are always computed in the same way."""
    weights: Annotated[Literal["int8"] | None, default("as they are")] = None
    """int8 rounds the weights to eight bits, for less memory."""
    compile_cache: Annotated[Path | None, Optional] = None
    """Folder for compiled programs. The next start reads them instead of compiling (torch: on GPUs only)."""
    echo: bool = False
    """Print the prompt first."""
    logprobs: Annotated[Path | None, Optional] = None
    """File to write, one line of JSON for each token: its id and its log-probability. With --prompts: -, for
    a list of them in each line of the output."""

    def options(self) -> dict[str, Any]:
        """What every prompt is continued with."""
        names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "stop_tokens", "seed", "weights")
        own = {name: getattr(self, name) for name in (*names, "tokenizer")}
        return {**own, "stop": tuple(map(_as_utf8, self.stop))}


def generate(request: Request[GenerateRequest]) -> int:
    """Print what a trained model writes after a prompt: the text as it is written, and nothing else.

    With --prompts, print a line of JSON for each prompt, in their order: its fields, and what was written
    after it: text, ids, and finish, which is "stop" or "length". Lines come as their batch is done.
    """
    _check(request)
    given = None if request.prompts is None else read_prompts(request.prompts)
    path, used = find_checkpoint(request.run, request.checkpoint)
    backend = request.backend or first_backend(used)
    keep_programs(request.compile_cache, backend)
    model = load(path, backend=backend, device=request.device, attention=request.attention)
    if given is not None:
        _continue_all(request, model, given)
    else:
        _continue(request, model, _as_utf8(request.prompt or ""))
    return 0


def _continue(request: GenerateRequest, model: Any, prompt: str) -> None:
    """Print the text after one prompt."""
    if request.echo:
        _write(prompt)
    options = request.options()
    generation = generate_text(model, prompt, **options, on_text=lambda row, piece: _write(piece))
    if sys.stdout.isatty():
        _write("\n")
    if request.logprobs is not None:
        _write_logprobs(generation, request.logprobs)


def _continue_all(request: GenerateRequest, model: Any, given: Prompts) -> None:
    """Print a line for each prompt, a batch at a time; nothing before all prompts are known to be right."""
    size = 8 if request.batch is None else request.batch
    tokenizer = tokenizer_for(model, request.tokenizer)
    encoded = given.encoded(tokenizer, config_of(model), request.max_new_tokens)
    options = request.options() | {"tokenizer": tokenizer}
    starts = range(0, len(encoded), size)
    for first in starts:
        check_room(model, encoded[first : first + size], request.max_new_tokens)
    for first in starts:
        batch: list[Prompt] = list(encoded[first : first + size])
        found = generate_text(model, batch, **options, first_row=first)
        for row, generation in enumerate(found, first):
            told = line_of(given.fields[row], generation, logprobs=request.logprobs is not None)
            sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


def _check(request: GenerateRequest) -> None:
    """Raise `ConfigError` and `DataError` for options that do not go together, before anything is loaded."""
    if (request.prompt is None) is (request.prompts is None):
        got = "neither" if request.prompt is None else "both"
        raise ConfigError(f"either --prompt or --prompts must be given; got {got}. Give one of them.")
    if request.prompts is None:
        if request.batch is not None:
            raise ConfigError("--batch must be given with --prompts; got --prompt. Leave it out.")
        if request.logprobs is not None:
            _check_logprobs(request.logprobs)
        return
    integer("batch", 1 if request.batch is None else request.batch, least=1)
    if request.echo:
        raise ConfigError("--echo must be given with --prompt; got --prompts. Leave it out.")
    if request.logprobs not in (None, Path(STANDARD_INPUT)):
        raise ConfigError(
            f"logprobs must be - with --prompts, whose lines hold them; got {request.logprobs}. "
            "Write --logprobs -."
        )


def find_checkpoint(path: Path, which: str) -> tuple[Path, Backend | None]:
    """The checkpoint of a run or the one at `path`, and the backend that trained it."""
    run = Run(path) if Run(path).is_run else Run(path.resolve().parent)
    if run.is_run:
        chosen = run.checkpoint(which) if run.path == path else checkpoint_path(path)
        return chosen, run.settings()["backend"]
    if not (path / MANIFEST).exists():
        lacks = f", which has neither {SETTINGS} nor {MANIFEST}"
        found = lacks if path.exists() else ", and there is no such folder"
        raise RunError(
            f"run must be the folder of a run, or a checkpoint; got run={path}{found}. Check the path."
        )
    return path, None


def _as_utf8(argument: str) -> str:
    """An argument's text: a locale that lacks a letter gives its bytes, and these are UTF-8 nearly always."""
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError:  # not from a command line, or no text: the tokenizer says what is wrong with it
        return argument


def _write(piece: str) -> None:
    """To a terminal as what can be seen: a model may write what controls one."""
    sys.stdout.write(visible(piece, keep="\n\t") if sys.stdout.isatty() else piece)
    sys.stdout.flush()


def _check_logprobs(file: Path) -> None:
    """Raise `DataError` if the file cannot be written, as far as that can be known before."""
    folder = file.parent
    if file.is_dir() or not folder.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        what = "a folder" if file.is_dir() else "no folder" if not folder.is_dir() else "no permission"
        raise DataError(f"logprobs must be a writable file; got {file}: {what}. Name another file.")


def _write_logprobs(generation: Generation, file: Path) -> None:
    pairs = zip(generation.tokens.tolist(), generation.logprobs.tolist(), strict=True)
    lines = [json.dumps({"token": token, "logprob": logprob}) + "\n" for token, logprob in pairs]
    try:
        replace_file(file, "".join(lines).encode())
    except OSError as error:
        raise DataError(
            f"logprobs must be a writable file; got {file}: {error.strerror}. {remedy(error)}"
        ) from None
