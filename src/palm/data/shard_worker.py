"""A process that hashes files and encodes shards, one job at a time, each a line on standard input.

    python -m palm.data.shard_worker

What it answers is in `palm.data.shard_pool`. It ends with its parent.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from palm.data.files import check_unchanged, unreadable
from palm.data.pieces import Span, encode_span
from palm.data.shard_pool import Message, file_of
from palm.data.shards import unwritable
from palm.data.tokenizer import Tokenizer, load_tokenizer
from palm.errors import PalmError
from palm.files.arrays import npy_header
from palm.files.read import reading
from palm.files.write import replace_file
from palm.process import lines_of_parent

_CHUNK = 1 << 22
# Told how many bytes more have been read.
OnRead = Callable[[int], None]


def main() -> None:
    """Do each job, and say what came of it."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a tokenizer prints is its own affair

    def say(message: Message) -> None:
        print(json.dumps(message), file=answers, flush=True)

    for line in lines_of_parent():
        say(do(json.loads(line), lambda count: say({"read": count})))


def do(job: Message, on_read: OnRead) -> Message:
    """Do a job: what was found, or why it is refused."""
    try:
        return {"job": job["job"], "found": (encode if "spans" in job else hash_source)(job, on_read)}
    except PalmError as error:
        return {"refused": str(error)}


def hash_source(job: Message, on_read: OnRead) -> str:
    """SHA-256 of a file of text, as it was when the corpus was opened. Raises `DataError`."""
    file = file_of(job["file"])
    try:
        with reading(file.path) as reader:
            while count := len(reader.read(_CHUNK)):
                on_read(count)
            digest = reader.finish()
            check_unchanged(file, reader.stream.fileno())
    except OSError as error:
        raise unreadable(file.path, error) from None
    return digest


def encode(job: Message, on_read: OnRead) -> dict[str, Any]:
    """Write the ids of the spans of text as a shard; its entry in the manifest. Raises `DataError`."""
    tokenizer, target = _tokenizer(job["tokenizer"]), Path(job["target"])
    dtype = np.dtype(job["dtype"]).newbyteorder("<")
    pieces = []
    for file, is_followed, start, stop in job["spans"]:
        span = Span(file_of(file), is_followed, start, stop)
        for count, ids in encode_span(span, tokenizer, dtype, target.name):
            pieces.append(ids)
            on_read(count)
    length = sum(map(len, pieces))
    # Their bytes, without a third copy of the ids.
    shard = b"".join([npy_header(dtype, length), *(ids.data for ids in pieces)])
    try:
        replace_file(target, shard)
    except OSError as error:
        raise unwritable(target.parent, error) from None
    return {"length": length, "bytes": len(shard), "sha256": hashlib.sha256(shard).hexdigest()}


@cache
def _tokenizer(name: str) -> Tokenizer:
    return load_tokenizer(name)


if __name__ == "__main__":
    main()
