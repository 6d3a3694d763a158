"""Shards for tests: written without a process of their own, or row by row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from palm import DataError
from palm.data import shard_plan, sharding
from palm.data.shard_worker import do
from palm.data.shards import FORMAT, MANIFEST, VERSION, shard_name
from palm.files.arrays import npy_header
from palm.files.sealed import sealed

TOKENIZER = b"{}"


class Inline:
    """A `palm.data.shard_pool.Pool` that does every job here and now."""

    def __init__(self, most: int) -> None:
        self.jobs: list[dict[str, Any]] = []

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, jobs: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for job in jobs:
            said: list[int] = []
            answer = json.loads(json.dumps(do(json.loads(json.dumps(job)), said.append)))
            if "refused" in answer:
                raise DataError(answer["refused"])
            yield from ({"read": count} for count in said)
            yield answer


def inline(patch: pytest.MonkeyPatch, shard_bytes: int | None = None) -> None:
    """Write shards in this process, and small ones."""
    patch.setattr(sharding, "Pool", Inline)
    if shard_bytes is not None:
        patch.setattr(shard_plan, "SHARD_BYTES", shard_bytes)


def seal(folder: Path, changes: Mapping[str, Any]) -> None:
    """Change a manifest, and seal it anew."""
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    manifest.pop("seal")
    manifest = {name: value for name, value in {**manifest, **changes}.items() if value is not ...}
    (folder / MANIFEST).write_text(sealed(manifest), "utf-8")


def write_rows(folder: Path, rows: Iterable[np.ndarray], num_tokens: int) -> Path:
    """A folder of shards with these ids, of a tokenizer that nobody can parse, as if of two bytes each."""
    dtype = np.min_scalar_type(num_tokens - 1).newbyteorder("<")
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_bytes(TOKENIZER)
    shards = []
    for index, row in enumerate(rows):
        content = npy_header(dtype, len(row)) + row.astype(dtype).tobytes()
        (folder / shard_name(index)).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        shards.append({"length": len(row), "bytes": len(content), "sha256": digest})
    zero = 64 * "0"
    digest = hashlib.sha256(TOKENIZER).hexdigest()
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": {"name": "t.json", "digest": digest, "file": "tokenizer.json"},
        "num_tokens": num_tokens,
        "dtype": dtype.name,
        "shard_bytes": 1,
        "text": {"bytes": 2 * sum(shard["length"] for shard in shards), "digest": zero},
        "sources": {"text": zero},
        "shards": shards,
    }
    (folder / MANIFEST).write_text(sealed(manifest), "utf-8")
    return folder
