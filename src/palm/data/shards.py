"""A text as ids in a folder of shards: what that must be, and how it is opened. palm.data.sharding writes it.

OUT/palm-shards.json     the manifest, sealed with its own SHA-256: text, tokenizer, and every shard
OUT/shard-00000.npy …    the ids in order, each a file that NumPy reads too
OUT/tokenizer.json       or tokenizer.model, unless the ids are bytes
OUT/palm-shards.jsonl    instead of the manifest while the shards are written
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from palm.data.files import File, files_below, hash_files, open_file, refusal, unreadable
from palm.data.pieces import digest_of_ids
from palm.data.tokenizer import ByteTokenizer, Tokenizer
from palm.data.tokenizer_file import FILES, FileTokenizer, read_tokenizer_file
from palm.errors import DataError
from palm.files.arrays import NPY_HEADER
from palm.files.objects import MalformedError
from palm.files.schema import NATURAL, SHA256, TEXT, ByName, Items, Optional, Record, check, one_of, whole
from palm.files.sealed import read_format
from palm.files.write import remedy

FORMAT, VERSION = "palm-shards", 1
MANIFEST, JOURNAL = "palm-shards.json", "palm-shards.jsonl"
_RESTORE = "Restore another copy, or tokenize the text again."
# What is known before the first shard is.
ABOUT: Mapping[str, Any] = {
    "format": one_of(FORMAT),
    "version": NATURAL,
    "tokenizer": Record({"name": TEXT, "digest": TEXT, "file": Optional(one_of(*FILES))}),
    "num_tokens": whole(1, 2**32),
    "dtype": one_of("uint8", "uint16", "uint32"),
    "shard_bytes": NATURAL,
    "text": Record({"bytes": NATURAL, "digest": SHA256}),
    "sources": ByName(TEXT, SHA256),
}
SHARD: Mapping[str, Any] = {"length": NATURAL, "bytes": NATURAL, "sha256": SHA256}
_MANIFEST = Record({**ABOUT, "shards": Items(Record(SHARD))})


class Shards(NamedTuple):
    """Ids in files, what made them, and how much text each stands for; `digest` verifies every byte."""

    files: list[File]
    tokenizer: Tokenizer
    bytes_per_token: float
    digest: Callable[[], str]


def shard_name(index: int) -> str:
    """The name of a shard's file."""
    return f"shard-{index:05}.npy"


def is_shards(folder: Path) -> bool:
    """Whether the folder has shards, or had: a text would not have such names."""
    return any((folder / name).exists() for name in (MANIFEST, JOURNAL, shard_name(0)))


def texts_below(folder: Path) -> dict[str, File]:
    """The files of a folder of text by name, in their order.

    Raises `DataError` for one that cannot be read, and for shards further down: they are no text.
    """
    files = files_below(folder)
    for file in files:
        if file.name in (MANIFEST, JOURNAL):
            raise refusal("text alone", folder, f"There are shards in it: name their folder, {file.parent}.")
    return {file.relative_to(folder).as_posix(): open_file(file) for file in files}


def read_shards(folder: Path) -> Shards:
    """The shards in a folder. Only the manifest and the tokenizer are read; of the shards the sizes.

    Raises `DataError` for a folder that is not complete, or not as it was written; so does `digest` for
    shards whose bytes are others.
    """
    manifest = read_manifest(folder)
    own = _tokenizer(folder, manifest)
    files = [_open_shard(folder, manifest, index) for index in range(len(manifest["shards"]))]
    length = sum(file.size for file in files)
    return Shards(files, own, manifest["text"]["bytes"] / length, partial(_verified, manifest, files, own))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of shards, verified against its own seal. Raises `DataError`."""
    file = folder / MANIFEST
    try:
        content = read_format(file, FORMAT, (VERSION,), _damaged(file))
    except FileNotFoundError:
        if (folder / JOURNAL).exists():
            fix = "Its shards are not all written: run the same palm data tokenize once more."
            raise refusal("complete", folder, fix) from None
        raise refusal(f"with its {MANIFEST}", folder, _RESTORE) from None
    except OSError as error:
        raise unreadable(file, error) from None
    try:
        check(content, _MANIFEST)
        _check_fit(content)
    except MalformedError as error:
        raise DataError(f"{file} must describe shards; {error}. {_RESTORE}") from None
    return content


def is_whole(entry: Mapping[str, int], dtype: np.dtype) -> bool:
    """Whether a shard that has these many bytes has these many ids."""
    return entry["bytes"] == NPY_HEADER + entry["length"] * dtype.itemsize


def unwritable(out: Path, error: OSError) -> DataError:
    """The error for shards that cannot be written."""
    return DataError(f"out must be a writable folder; got out={out}: {error.strerror}. {remedy(error)}")


def _check_fit(manifest: Mapping[str, Any]) -> None:
    """Raise `MalformedError` unless the parts of a manifest fit one another."""
    dtype, most = np.dtype(manifest["dtype"]), manifest["num_tokens"] - 1
    if dtype != np.min_scalar_type(most):
        raise MalformedError(f"dtype must be the smallest for ids up to {most}; got {dtype}")
    if (manifest["tokenizer"]["file"] is None) != (manifest["tokenizer"]["digest"] == ByteTokenizer.digest):
        raise MalformedError("tokenizer must have a file unless it is bytes; it does not")
    if not any(entry["length"] for entry in manifest["shards"]):
        raise MalformedError("shards must have at least one id; they have none")
    for index, entry in enumerate(manifest["shards"]):
        if not is_whole(entry, dtype):
            raise MalformedError(f"shards[{index}] must be as long as its ids; got {entry['bytes']} bytes")


def _tokenizer(folder: Path, manifest: Mapping[str, Any]) -> Tokenizer:
    told = manifest["tokenizer"]
    if told["file"] is None:
        return ByteTokenizer()
    found: FileTokenizer = read_tokenizer_file(folder / told["file"])
    if found.digest != told["digest"]:
        raise _damaged(folder / told["file"])
    found.told = told["name"]
    return found


def _open_shard(folder: Path, manifest: Mapping[str, Any], index: int) -> File:
    """A shard as it is now. A stat says all that is needed, and costs a third of opening it."""
    path, entry = folder / shard_name(index), manifest["shards"][index]
    dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
    try:
        status = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from None
    if not stat.S_ISREG(status.st_mode) or status.st_size != entry["bytes"]:
        found = f"{path} of {status.st_size} bytes"
        raise refusal(f"shards as they were written, this one of {entry['bytes']} bytes", found, _RESTORE)
    below = manifest["num_tokens"]
    return File(path, status.st_size, status.st_mtime_ns, entry["length"], dtype, NPY_HEADER, below)


def _verified(manifest: Mapping[str, Any], files: Sequence[File], tokenizer: Tokenizer) -> str:
    digests = hash_files(file.path for file in files)
    for file, entry, found in zip(files, manifest["shards"], digests, strict=True):
        if found != entry["sha256"]:
            raise _damaged(file.path)
    return digest_of_ids(manifest["text"]["digest"], tokenizer)


def _damaged(file: Path) -> DataError:
    return refusal("shards as they were written", file, f"Its checksum differs. {_RESTORE}")
