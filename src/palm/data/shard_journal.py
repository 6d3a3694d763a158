"""What is known of shards while they are written: of what they are made, and which are finished.

A line for the first, and one for each shard, written after it. A kill may leave half a line, or a shard
without its line: that shard is made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from palm.data.files import hash_files
from palm.data.shards import ABOUT, JOURNAL, SHARD, is_whole, shard_name
from palm.errors import DataError
from palm.files.objects import MOST_BYTES, MalformedError, parse_object
from palm.files.read import read_file
from palm.files.schema import NATURAL, Record, check
from palm.files.write import append, replace_file

_LINE = Record({"shard": NATURAL, **SHARD})
_ELSE = "Choose another folder, or delete it."


def begin(out: Path, about: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Begin a journal, or go on with the one that is there: its shards that are, byte for byte, there too.

    Raises `DataError` for a journal of other shards, and `OSError`.
    """
    journal = out / JOURNAL
    if not journal.exists():
        replace_file(journal, line(about))
        return {}
    told, *lines = read_file(journal, MOST_BYTES).split(b"\n")
    try:
        check_same(out, parse_object(told), about)
    except MalformedError:
        raise DataError(f"{journal} must be as it was written; it is not. {_ELSE}") from None
    kept = dict(_kept(out, _entries(lines), np.dtype(about["dtype"])))
    # Without half a line, so that the next one stands alone.
    whole = [line({"shard": index, **entry}) for index, entry in kept.items()]
    replace_file(journal, b"".join([line(about), *whole]))
    return kept


def finished(out: Path, index: int, entry: Mapping[str, Any]) -> None:
    """Add a shard that is on the disk. Raises `OSError`."""
    append(out / JOURNAL, line({"shard": index, **entry}))


def line(content: Mapping[str, Any]) -> bytes:
    """A line of a journal."""
    return json.dumps(content, sort_keys=True).encode() + b"\n"


def check_same(out: Path, there: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Raise `DataError` unless shards are of this text and tokenizer; `MalformedError` if they are none.

    The name of the tokenizer's file does not matter.
    """
    check(there, Record(ABOUT))
    about = {**about, "tokenizer": {**about["tokenizer"], "name": there["tokenizer"]["name"]}}
    if there == about:
        return
    differs = next(name for name in ("tokenizer", "sources", *about) if there.get(name) != about[name])
    told = f"{differs} is {there[differs]}"
    if differs == "sources":
        theirs, ours = there["sources"], about["sources"]
        names = sorted(name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name))
        told = f"text differs in {names[0]}"
    raise DataError(
        f"out must be new, or of the same text, tokenizer and version of palm; got out={out}, whose {told}. "
        f"{_ELSE}"
    )


def _entries(lines: Iterable[bytes]) -> dict[int, dict[str, Any]]:
    found = {}
    for told in lines:
        with suppress(MalformedError):
            entry = parse_object(told)
            check(entry, _LINE)
            found[entry.pop("shard")] = entry
    return found


def _kept(
    out: Path, entries: Mapping[int, dict[str, Any]], dtype: np.dtype
) -> Iterator[tuple[int, dict[str, Any]]]:
    files = {index: out / shard_name(index) for index in entries}
    there = {i: entry for i, entry in entries.items() if is_whole(entry, dtype) and files[i].is_file()}
    digests = hash_files(files[index] for index in there)
    for (index, entry), digest in zip(there.items(), digests, strict=True):
        if digest == entry["sha256"]:
            yield index, entry
