"""Processes that hash and encode text for `palm.data.sharding`: handed jobs one by one, and ended with it."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from palm.data.files import File
from palm.data.pieces import Span
from palm.errors import DataError
from palm.process import end, start_python, tell

# A worker says {"read": bytes} as it goes on, and at the end {"job": …, "found": …} or {"refused": words}.
Message = dict[str, Any]


def hash_job(name: str, file: File) -> Message:
    """What a worker is asked for that hashes a source."""
    return {"job": name, "file": _plain(file)}


def encode_job(index: int, spans: Sequence[Span], target: Path, tokenizer: str, dtype: str) -> Message:
    """What a worker is asked for that writes a shard of files of text."""
    plain = [[_plain(span.text), *span[1:]] for span in spans if isinstance(span.text, File)]
    return {"job": index, "spans": plain, "target": str(target), "tokenizer": tokenizer, "dtype": dtype}


def _plain(file: File) -> list[Any]:
    return [str(file.path), file.bytes, file.changed]


def file_of(plain: Sequence[Any]) -> File:
    """In the worker: the file of text that the job names."""
    path, size, changed = plain
    return File(Path(path), size, changed, size)


class Pool:
    """At most so many `palm.data.shard_worker`, started for work; none outlives the `with` block."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._processes: list[subprocess.Popen[str]] = []
        self._idle: list[subprocess.Popen[str]] = []
        self._lines: queue.SimpleQueue[tuple[subprocess.Popen[str], str]] = queue.SimpleQueue()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            end(process)
        for process in self._processes:
            assert process.stdin is not None
            with suppress(OSError):  # what it was not handed any more
                process.stdin.close()
            process.wait()

    def run(self, jobs: Iterable[Mapping[str, Any]]) -> Iterator[Message]:
        """Hand out the jobs in their order, and give what the workers say as it comes.

        Raises `DataError` with the words of a worker that refuses its job, and for one that dies.
        """
        for job in jobs:
            while not self._idle and len(self._processes) == self._most:
                yield self._receive()
            process = self._idle.pop() if self._idle else self._start()
            tell(process, job)
        while len(self._idle) < len(self._processes):
            yield self._receive()

    def _start(self) -> subprocess.Popen[str]:
        process = start_python(
            "palm.data.shard_worker", env={"TOKENIZERS_PARALLELISM": "false"}, stdout=subprocess.PIPE
        )
        self._processes.append(process)
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        return process

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._lines.put((process, line))
        self._lines.put((process, ""))

    def _receive(self) -> Message:
        process, line = self._lines.get()
        if not line.endswith("\n"):
            raise DataError(
                f"a worker must finish its shard; it ended with status {process.wait()}. If memory was "
                "short, use fewer workers. Run the same command again: shards that are finished are kept."
            )
        message: Message = json.loads(line)
        if "refused" in message:
            raise DataError(message["refused"])
        if "found" in message:
            self._idle.append(process)
        return message
