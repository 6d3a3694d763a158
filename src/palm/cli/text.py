"""The commands about text: `palm generate`, `palm data`. A thin layer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import Progress
from tyro.conf import Positional

from palm.backends import first_backend, keep_programs
from palm.checkpoint.checkpoint import load
from palm.checkpoint.manifest import MANIFEST
from palm.cli.flags import Attention
from palm.config import Backend
from palm.data.download import fetch
from palm.data.tokenizer import load_tokenizer
from palm.errors import DataError, RunError
from palm.generation.generate import generate as generate_text
from palm.training.run_folder import Run


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
    attention: Attention = "auto",
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
        attention: How the prompt is read; a token after it has one way.
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
    chosen = backend or first_backend(used)
    keep_programs(compile_cache, chosen)
    model = load(path, backend=chosen, device=device, attention=attention)

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
