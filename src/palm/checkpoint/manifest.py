"""A checkpoint's manifest: what every file and tensor must be, and the verification against it."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from palm.errors import CheckpointError
from palm.files.write import what_lacks
from palm.spec.parameters import DTYPES

FORMAT = "palm-checkpoint"
# Version 2 is version 1 with a tokenizer. A palm that knows none must not take such a model for one of bytes.
VERSION, WITH_TOKENIZER = 1, 2
# What makes a folder a run (palm.training.run_folder), which holds checkpoints and is none.
RUN_SETTINGS = "run.json"
MANIFEST, CONFIG, TRAINING = "manifest.json", "config.json", "training.json"
WEIGHTS, OPTIMIZER = "weights-", "optimizer-"
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_HASH_CHUNK = 1 << 22


def fingerprint(file: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_HASH_CHUNK):
            digest.update(chunk)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def sealed(manifest: Mapping[str, Any]) -> str:
    """The manifest's text, which carries the SHA-256 of itself: everything else is checked through it."""
    body = json.dumps(manifest, sort_keys=True)
    seal = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({**manifest, "seal": seal}, indent=1, sort_keys=True) + "\n"


def read_sealed(file: Path) -> tuple[dict[str, Any] | None, bool]:
    """What `sealed` was given, None if the file holds no object; and whether not a byte of it has changed."""
    try:
        text = file.read_bytes().decode()
        content = {key: value for key, value in json.loads(text).items() if key != "seal"}
    except (ValueError, AttributeError, RecursionError):
        return None, False
    return content, text == sealed(content)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the checkpoint at `path`, verified against its own seal."""
    file = path / MANIFEST
    try:
        content, is_intact = read_sealed(file)
    except OSError as error:
        raise CheckpointError(
            f"path must be a checkpoint directory with {MANIFEST}; got path="
            f"{what_lacks(path, MANIFEST, error)}. Pass what palm.save returned, or the folder of a run. For "
            "weights in another file: palm.from_numpy, or palm.from_upstream if it is a published original's."
        ) from None
    if content is None:
        raise CheckpointError(_damaged(file))
    if content.get("format") != FORMAT or content.get("version") not in (VERSION, WITH_TOKENIZER):
        raise CheckpointError(
            f"{file} must be of format {FORMAT} version {VERSION} or {WITH_TOKENIZER}; got "
            f"format={content.get('format')!r}, "
            f"version={content.get('version')!r}. Read it with the palm version that wrote it."
        )
    if not is_intact:
        raise CheckpointError(_damaged(file))
    if not _is_complete(content):
        raise CheckpointError(f"{file} must name dtype and files; it does not. Save it again.")
    return content


def _is_complete(manifest: Mapping[str, Any]) -> bool:
    files = manifest.get("files")
    others = {CONFIG, TRAINING, *(TOKENIZERS if manifest.get("version") == WITH_TOKENIZER else ())}
    return (
        manifest.get("dtype") in list(DTYPES)
        and isinstance(files, dict)
        and all(isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys() for entry in files.values())
        and all(isinstance(entry.get("tensors"), dict) for name, entry in files.items() if name not in others)
    )


def verified_text(file: Path, entry: Mapping[str, Any] | None) -> str:
    """The text of a file that is what its manifest entry says."""
    if entry is None:
        raise CheckpointError(f"{file} must be listed in {MANIFEST}; it is not. Restore another copy.")
    verify(file, entry)
    return file.read_text(encoding="utf-8")


def read_tensors(file: Path, entry: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a weights file that is what its manifest entry says, by name."""
    verify(file, entry)
    try:
        _check_header(file)
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                yield name, tensors.get_tensor(name)
    except CheckpointError:
        raise
    except (SafetensorError, TypeError, KeyError, ValueError, MemoryError, OverflowError) as error:
        raise CheckpointError(f"{file} must be a safetensors file; {error}. Restore another copy.") from None


def _check_header(file: Path) -> None:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise CheckpointError(f"{file}: {name} must occur once; got it twice. Save it again.")
        return dict(pairs)

    header, _ = _raw_header(file)
    json.loads(header, object_pairs_hook=unique)


def _raw_header(file: Path) -> tuple[bytes, int]:
    """The JSON header of a safetensors file, and the offset where its data starts."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return stream.read(length), 8 + length


def verify(file: Path, entry: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless the file is, byte for byte, the one that was saved."""
    try:
        found = fingerprint(file)
    except OSError as error:
        raise CheckpointError(f"{file} must exist; {error.strerror}. Restore another copy.") from None
    if found["bytes"] != entry["bytes"]:
        raise CheckpointError(
            f"{file} must be {entry['bytes']} bytes long; got {found['bytes']}{_locate(file, entry)}. "
            "It was cut short or written over: restore another copy."
        )
    if found["sha256"] != entry["sha256"]:
        raise CheckpointError(_damaged(file, _locate(file, entry)))


def _locate(file: Path, entry: Mapping[str, Any]) -> str:
    """The first tensor of a damaged file whose bytes are not those that were saved, as `, in NAME`."""
    if "tensors" not in entry:
        return ""
    try:
        header, start = _raw_header(file)
        spans = {name: row["data_offsets"] for name, row in json.loads(header).items()}
        with file.open("rb") as stream:
            for name, checksum in entry["tensors"].items():
                first, last = spans[name]
                stream.seek(start + first)
                data = stream.read(last - first)
                if len(data) != last - first or zlib.crc32(data) != checksum:
                    return f", damaged in {name}"
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
        RecursionError,
        OSError,
    ):
        pass  # the header itself is damaged, and says nothing about tensors
    return ", damaged in its header"


def _damaged(file: Path, where: str = "") -> str:
    return f"{file} must be as it was saved; its checksum differs{where}. Restore another copy."
