"""The commands about data: `palm data fetch`, `palm data tokenize`, `palm data info`. A thin layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg, subcommand

from palm.cli.display import Terminal
from palm.cli.flags import Request, default
from palm.data.corpus import Corpus, open_corpus
from palm.data.download import fetch
from palm.data.sharding import write_shards
from palm.data.tokenizer import ByteTokenizer
from palm.files.names import visible
from palm.memory import in_units


@dataclass(frozen=True, kw_only=True)
class FetchRequest:
    """Download a public corpus. A copy that exists is verified, not fetched again."""

    name: Positional[Annotated[str, arg(metavar="NAME")]]
    """Which one: enwik8."""
    folder: Positional[Annotated[Path, arg(metavar="[FOLDER]")]] = Path()
    """Where to put it."""


@dataclass(frozen=True, kw_only=True)
class TokenizeRequest:
    """Encode text once, in several processes, into a folder that palm train --data takes.

    After an interruption, the same command goes on. Where everything is there, it is verified.
    """

    text: Positional[Annotated[Path, arg(metavar="TEXT")]]
    """A file, or a folder of files, of text."""
    tokenizer: str
    """A Hugging Face tokenizer.json, a SentencePiece .model, or bytes."""
    out: Path
    """Folder to write."""
    workers: Annotated[int | None, default("one for each core")] = None
    """How many processes encode. Each needs memory for about 64 MiB of text and its ids."""


@dataclass(frozen=True, kw_only=True)
class DataInfoRequest:
    """Describe data: how many tokens, how much text, which tokenizer. All of it is read, and verified."""

    data: Positional[Annotated[Path, arg(metavar="DATA")]]
    """What palm train --data takes: a file, a folder, a .npy file of token ids, or a folder of shards."""


DataRequest = (
    Annotated[FetchRequest, subcommand("fetch")]
    | Annotated[TokenizeRequest, subcommand("tokenize")]
    | Annotated[DataInfoRequest, subcommand("info")]
)


def data(request: Request[DataRequest]) -> int:
    """Fetch a public corpus, encode a large text into a folder of shards, or describe data."""
    if isinstance(request, DataInfoRequest):
        _show(open_corpus(request.data))
        return 0
    with _bar() as on_progress:
        if isinstance(request, FetchRequest):
            path = fetch(
                request.name,
                request.folder,
                on_progress=lambda done, total: on_progress(request.name, done, total),
            )
        else:
            path = write_shards(
                request.text,
                request.tokenizer,
                request.out,
                workers=request.workers,
                on_progress=on_progress,
            )
    print(visible(str(path)))
    return 0


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error if that is a terminal, to be told what is done, and bytes done and in all."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(
            task, description=visible(what), completed=done, total=total
        )


def _show(corpus: Corpus) -> None:
    is_text = math.isfinite(corpus.bytes_per_token)
    tokenizer = corpus.tokenizer or ByteTokenizer()
    told = {
        "data": corpus.name,
        "tokens": f"{len(corpus):,}",
        "text": in_units(round(len(corpus) * corpus.bytes_per_token)) if is_text else "unknown",
        "bytes per token": f"{corpus.bytes_per_token:.4g}" if is_text else None,
        "tokenizer": getattr(tokenizer, "told", tokenizer.name) if is_text else "unknown",
        "SHA-256": corpus.digest,
    }
    table = Table(box=None, padding=(0, 2), show_header=False)
    for name, value in told.items():
        if value is not None:
            table.add_row(name, Text(visible(value)))
    Terminal().print(table, highlight=False)
