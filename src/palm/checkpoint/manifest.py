"""A checkpoint's manifest: what every file and tensor must be, and the verification against it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from palm.data.tokenizer_file import FILES
from palm.errors import CheckpointError
from palm.files.objects import MOST_BYTES, MalformedError, parse_object
from palm.files.read import Reader, reading
from palm.files.schema import (
    ABSENT,
    FILE_NAME,
    HEXADECIMAL,
    NATURAL,
    OBJECT,
    PRINTABLE,
    SHA256,
    TEXT,
    ByName,
    Items,
    Record,
    check,
    one_of,
    whole,
)
from palm.files.sealed import read_format
from palm.files.tensors import read_tensors as _read_tensors
from palm.files.write import what_lacks
from palm.spec.parameters import DTYPES

FORMAT = "palm-checkpoint"
# Version 2 is version 1 with a tokenizer. A palm that knows none must not take such a model for one of bytes.
# Version 3 holds pieces of tensors in place of whole ones, and a tokenizer if there is one.
VERSION, WITH_TOKENIZER, IN_PIECES = _VERSIONS = 1, 2, 3
# What makes a folder a run (palm.training.run_folder), which holds checkpoints and is none; and its log.
RUN_SETTINGS, METRICS = "run.json", "metrics.jsonl"
MANIFEST, CONFIG, TRAINING = "manifest.json", "config.json", "training.json"
WEIGHTS, OPTIMIZER = "weights-", "optimizer-"
TOKENIZERS = FILES
_CHUNK = 1 << 22
_ENTRY = {"bytes": NATURAL, "sha256": SHA256}
_MANIFEST = Record({"version": NATURAL, "dtype": one_of(*DTYPES), "files": ByName(FILE_NAME, OBJECT)})
_OTHERS = Record({"files": ByName(TEXT, Record(_ENTRY))})
# Where imported weights come from, which a manifest need not say.
_ORIGIN = ByName(TEXT, PRINTABLE)
_TENSORS = Record(
    {"files": ByName(TEXT, Record({**_ENTRY, "tensors": ByName(PRINTABLE, whole(0, 2**32 - 1))}))}
)
# A file of pieces has a CRC-32 of each, and the SHA-256 of its header alone: to take that of all its bytes
# takes longer than to write them.
_OF_PIECES = {"bytes": NATURAL, "header": SHA256}
# Of each piece its CRC-32, then where it starts, then its shape: half a million of them fit into a manifest.
_PIECES = Record(
    {"files": ByName(TEXT, Record({**_OF_PIECES, "pieces": ByName(PRINTABLE, Items(Items(NATURAL)))}))}
)
# Millions, where they form grids (palm.checkpoint.grids).
_GRIDS = Record(
    {
        "files": ByName(TEXT, Record(_OF_PIECES, optional={"pieces": ABSENT, "tensors": ABSENT})),
        "grids": Items(Record({"starts": Items(Items(NATURAL)), "files": Items(NATURAL)})),
        "tensors": ByName(PRINTABLE, Record({"grid": NATURAL, "crc32": HEXADECIMAL})),
    }
)


def fingerprint(file: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file. Raises `OSError`, also if it is no regular file."""
    with reading(file) as reader:
        digest = reader.finish()
        return {"bytes": reader.at, "sha256": digest}


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the checkpoint at `path`, verified against its own seal."""
    file = path / MANIFEST
    try:
        content = read_format(file, FORMAT, _VERSIONS, CheckpointError(damaged(file)))
    except OSError as error:
        raise CheckpointError(
            f"path must be a checkpoint directory with {MANIFEST}; got path="
            f"{what_lacks(path, MANIFEST, error)}. Pass what palm.save returned, or the folder of a run. For "
            "weights in another file: palm.from_numpy, or palm.from_upstream if it is a published original's."
        ) from None
    check_manifest(file, content)
    return content


def check_manifest(file: Path, content: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless the manifest has what its version needs, of the right types."""
    try:
        check(content, _MANIFEST)
        check(content.get("origin", {}), _ORIGIN)
        tensors = {"files": {name: content["files"][name] for name in files_of_tensors(content)}}
        check({"files": {k: v for k, v in content["files"].items() if k not in tensors["files"]}}, _OTHERS)
        if has_grids(content):
            check({**content, **tensors}, _GRIDS)
        else:
            check(tensors, _PIECES if content["version"] == IN_PIECES else _TENSORS)
    except MalformedError as error:
        raise CheckpointError(f"{file} must describe a checkpoint; {error}. Save it again.") from None


def files_of_tensors(manifest: Mapping[str, Any]) -> list[str]:
    """The names of the files that hold tensors, or pieces of them, sorted."""
    others = {CONFIG, TRAINING, *(TOKENIZERS if manifest["version"] != VERSION else ())}
    return sorted(name for name in manifest["files"] if name not in others)


def has_grids(manifest: Mapping[str, Any]) -> bool:
    """Whether it lists pieces by the grids that they form, not each by itself."""
    return manifest["version"] == IN_PIECES and "grids" in manifest


def key_of(name: str, start: Sequence[int]) -> str:
    """What a piece of a tensor is called in its file."""
    return f"{name}@{','.join(map(str, start))}"


def verify(file: Path, entry: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless the file is, byte for byte, the one that was saved."""
    with verifying(file, entry):
        pass


def read_verified(file: Path, entry: Mapping[str, Any] | None) -> bytes:
    """The content of a file that is what its manifest entry says: those very bytes are the verified ones."""
    if entry is None:
        raise CheckpointError(f"{file} must be listed in {MANIFEST}; it is not. Restore another copy.")
    with verifying(file, entry) as reader:
        if reader.size > MOST_BYTES:
            raise MalformedError(f"it must have at most {MOST_BYTES:,} bytes; got {reader.size:,}")
        return reader.read(reader.size)


def read_tensors(file: Path, entry: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a weights file that is what its manifest entry says, by name.

    They must be those that the entry lists, if it lists any. Raises `CheckpointError`.
    """
    with verifying(file, entry) as reader:
        arrays = _read_tensors(reader)
        listed = entry.get("tensors", arrays)
        if listed.keys() != arrays.keys():
            name = min(listed.keys() ^ arrays.keys())
            raise MalformedError(f"it must hold the tensors that {MANIFEST} lists; {name} does not fit")
        return arrays


@contextmanager
def verifying(file: Path, entry: Mapping[str, Any]) -> Iterator[Reader]:
    """The file to read once, for a `with` that gives out nothing before the whole file is verified.

    What its content lacks is said only if the file is the one that was saved: else it is damaged.
    """
    try:
        with reading(file) as reader:
            check_size(reader, file, entry)
            try:
                yield reader
            except MalformedError as error:
                check_digest(reader, file, entry)
                kind = "a safetensors file" if file.suffix == ".safetensors" else "as it was saved"
                raise CheckpointError(f"{file} must be {kind}; {error}. Restore another copy.") from None
            check_digest(reader, file, entry)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} must exist; {error.strerror}. Restore another copy.") from None
    except OSError as error:
        raise CheckpointError(
            f"{file} must be a file that can be read; {error.strerror}. Restore another copy."
        ) from None


def check_size(reader: Reader, file: Path, entry: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless the file has the size that its manifest entry says."""
    if reader.size != entry["bytes"]:
        raise CheckpointError(
            f"{file} must be {entry['bytes']} bytes long; got {reader.size}{_locate(reader, entry)}. "
            "It was cut short or written over: restore another copy."
        )


def check_digest(reader: Reader, file: Path, entry: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless the bytes that were read are those that its manifest entry says."""
    if reader.finish() != entry["sha256"]:
        raise CheckpointError(damaged(file, _locate(reader, entry)))


def _locate(reader: Reader, entry: Mapping[str, Any]) -> str:
    """The first tensor of a damaged file whose bytes are not those that were saved, as `, in NAME`."""
    checksums = entry.get("tensors", {})
    if not checksums:
        return ""
    try:
        reader.stream.seek(0)
        again = Reader(reader.stream)
        length = int.from_bytes(again.read(8), "little")
        spans = {name: row["data_offsets"] for name, row in parse_object(again.read(length)).items()}
        for name, checksum in checksums.items():
            first, last = spans[name]
            if not 0 <= first <= last <= entry["bytes"] - 8 - length:
                break
            if _checksum(reader, 8 + length + first, last - first) != checksum:
                return f", damaged in {name}"
    except (ValueError, LookupError, TypeError, OverflowError, OSError):
        pass  # the header itself is damaged, and says nothing about tensors
    return ", damaged in its header"


def _checksum(reader: Reader, start: int, count: int) -> int | None:
    """CRC-32 of so many bytes from there; None if the file ends before."""
    reader.stream.seek(start)
    found = 0
    while count:
        data = reader.stream.read(min(count, _CHUNK))
        if not data:
            return None
        found, count = zlib.crc32(data, found), count - len(data)
    return found


def damaged(file: Path, where: str = "") -> str:
    """The message about a file whose checksum differs, at a place in it."""
    return f"{file} must be as it was saved; its checksum differs{where}. Restore another copy."
