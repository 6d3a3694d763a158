"""Encoding a text into a folder of shards, in several processes: `palm data tokenize`.

How many processes there are, and how often they are killed, shows in nothing that is written: a shard that is
finished is not made again, and which text it has depends on the text alone (`palm.data.shard_plan`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from palm.data import shard_plan
from palm.data.files import File, hash_folder, refusal
from palm.data.pieces import dtype_of, spans_of
from palm.data.shard_journal import begin, check_same, finished, line
from palm.data.shard_plan import plan, sources_of
from palm.data.shard_pool import Message, Pool, encode_job, hash_job
from palm.data.shards import (
    FORMAT,
    JOURNAL,
    MANIFEST,
    VERSION,
    read_manifest,
    read_shards,
    shard_name,
    unwritable,
)
from palm.data.tokenizer import ByteTokenizer, load_tokenizer
from palm.data.tokenizer_file import FileTokenizer
from palm.errors import DataError
from palm.files.objects import MOST_BYTES
from palm.files.sealed import sealed
from palm.files.write import fsync, replace_file

LOCK = ".lock"

# on_progress(what is done, bytes of text done, bytes in all): first "reading", then "encoding".
OnProgress = Callable[[str, int, int], None]


def write_shards(
    data: str | os.PathLike[str],
    tokenizer: Any,
    out: str | os.PathLike[str],
    *,
    workers: int | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Path:
    """Encode a file of text, or a folder of them, into the folder `out`, whose path is returned.

    `open_corpus(Path(out))` has the ids, the digest and the bytes per token of `open_corpus(Path(data),
    tokenizer)`. `tokenizer` is what `load_tokenizer` takes, and has a file, or "bytes". Each of the `workers`
    (one for each core, unless there is less text) holds one shard in memory.

    Called again after a kill it goes on: finished shards are verified and kept. Where everything is there,
    it is only verified. Raises `DataError` for text that cannot be read or encoded, or changes meanwhile, for
    an `out` that cannot be written, or that has something else in it, and for a worker that dies.
    """
    known = load_tokenizer(tokenizer)
    if not isinstance(known, (ByteTokenizer, FileTokenizer)):
        raise DataError(
            f"tokenizer must have a file for other processes to read; got tokenizer={known.name}. Save it as "
            "tokenizer.json or tokenizer.model and pass the path."
        )
    if workers is not None and workers < 1:
        raise DataError(f"workers must be at least 1; got workers={workers}. Use a larger number.")
    source, out = Path(data).absolute(), Path(out)
    sources = sources_of(source)
    _check_out(out, source)
    enough = 1 + sum(file.size for file in sources.values()) // shard_plan.SHARD_BYTES
    with Pool(min(workers or os.cpu_count() or 1, enough)) as pool:
        sharding = _Sharding(source.is_dir(), sources, known, pool, on_progress)
        about = sharding.about()
        try:
            with _only_writer(out):
                sharding.write(out, about)
        except OSError as error:
            raise unwritable(out, error) from None
    return out


def _check_out(out: Path, source: Path) -> None:
    """Raise `DataError` unless the folder is new, empty, or one of shards; and apart from the text."""
    if out.resolve().is_relative_to(source.resolve()):
        raise DataError(
            f"out must be outside of data, which it would change; got out={out}, data={source}. "
            "Choose another folder."
        )
    if not os.path.lexists(out):
        return
    try:
        there = {entry.name for entry in out.iterdir() if not entry.name.startswith(".")}
    except OSError as error:
        raise unwritable(out, error) from None
    if there and not there & {MANIFEST, JOURNAL}:
        raise DataError(
            f"out must be a new or empty folder, or one of shards; got out={out}. Choose another folder."
        )


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Keep other processes from writing there. The lock ends with the process."""
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise DataError(
            f"out must have one writer; got out={out}, where another process writes. Wait for it."
        ) from None
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class _Sharding:
    """A text, what encodes it, and who does."""

    is_folder: bool
    sources: Mapping[str, File]
    tokenizer: ByteTokenizer | FileTokenizer
    pool: Pool
    on_progress: OnProgress

    def about(self) -> dict[str, Any]:
        """What the shards are made of, and how. Every file of text is read once."""
        bar = _Bar("reading", sum(file.size for file in self.sources.values()), self.on_progress)
        jobs = (hash_job(name, file) for name, file in self.sources.items())
        found = dict(bar.follow(self.pool.run(jobs)))
        digests = {name: found[name] for name in self.sources}
        known = self.tokenizer
        file = known.file if isinstance(known, FileTokenizer) else None
        about = {
            "format": FORMAT,
            "version": VERSION,
            "tokenizer": {"name": known.name, "digest": known.digest, "file": file},
            "num_tokens": known.num_tokens,
            "dtype": dtype_of(known).name,
            "shard_bytes": shard_plan.SHARD_BYTES,
            "text": {
                "bytes": sum(span.stop for span in spans_of(list(self.sources.values()))),
                "digest": hash_folder(digests) if self.is_folder else next(iter(digests.values())),
            },
            "sources": digests,
        }
        if len(line(about)) > MOST_BYTES // 2:
            told = f"{len(digests):,} files"
            raise refusal("no more files than one manifest can name", told, "Join some of them.")
        return about

    def write(self, out: Path, about: Mapping[str, Any]) -> None:
        """Make what is not there yet, and last the manifest. Raises `DataError` and `OSError`."""
        if (out / MANIFEST).exists():
            manifest = read_manifest(out)
            check_same(out, {name: manifest[name] for name in about}, about)
            read_shards(out).digest()
        else:
            shards = self._encode(out, about)
            if not any(shard["length"] for shard in shards):
                raise refusal("at least one token long", out, "Use another text or tokenizer.")
            replace_file(out / MANIFEST, sealed({**about, "shards": shards}).encode())
        (out / JOURNAL).unlink(missing_ok=True)
        fsync(out)

    def _encode(self, out: Path, about: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Make the shards that are not there; what the manifest says of each."""
        done = begin(out, about)
        tokenizer = self.tokenizer.name
        if isinstance(self.tokenizer, FileTokenizer):
            file = out / self.tokenizer.file
            replace_file(file, self.tokenizer.content)
            tokenizer = str(file.absolute())
        bar = _Bar("encoding", about["text"]["bytes"], self.on_progress)
        planned = 0

        def jobs() -> Iterator[Message]:
            nonlocal planned
            for index, spans in enumerate(plan(list(self.sources.values()))):
                planned += 1
                if index in done:
                    bar.add(sum(span.stop - span.start for span in spans))
                else:
                    target = out.absolute() / shard_name(index)
                    yield encode_job(index, spans, target, tokenizer, about["dtype"])

        for index, found in bar.follow(self.pool.run(jobs())):
            finished(out, index, found)
            done[index] = found
        return [done[index] for index in range(planned)]


class _Bar:
    """How far something is."""

    def __init__(self, what: str, total: int, on_progress: OnProgress) -> None:
        self._what, self._done, self._total, self._on_progress = what, 0, total, on_progress
        self.add(0)

    def add(self, count: int) -> None:
        """So many bytes more."""
        self._done += count
        self._on_progress(self._what, self._done, self._total)

    def follow(self, messages: Iterable[Message]) -> Iterator[tuple[Any, Any]]:
        """What is found for each job; what is read on the way is told."""
        for message in messages:
            if "read" in message:
                self.add(message["read"])
            else:
                yield message["job"], message["found"]
