"""The tokenizer of a checkpoint or a run: a file that both keep, and a run's record of which one it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palm.checkpoint.locate import checkpoint_path
from palm.checkpoint.manifest import RUN_SETTINGS, TOKENIZERS, read_manifest, read_verified
from palm.data.tokenizer import ByteTokenizer, Tokenizer
from palm.data.tokenizer_file import FileTokenizer, read_tokenizer_file
from palm.errors import DataError, RunError
from palm.files.objects import MalformedError
from palm.files.schema import TEXT, Optional, Record, check
from palm.files.sealed import read_sealed

_DATA = Record({"tokenizer": Optional(TEXT)}, {"path": Optional(TEXT), "tokenizer_digest": Optional(TEXT)})


def checkpoint_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer of the checkpoint that `path` means, verified but not parsed; None if none is recorded.

    Version 0.1.0 kept it in the run's folder alone: there it is looked for second. Raises `CheckpointError`
    for a damaged file, `RunError` for one that is not the run's.
    """
    path = checkpoint_path(path)
    manifest = read_manifest(path)
    for name in TOKENIZERS:
        if name in manifest["files"]:
            return FileTokenizer(path / name, read_verified(path / name, manifest["files"][name]))
    run = path.resolve().parent
    if not os.path.isfile(run / RUN_SETTINGS):
        return None
    try:
        settings, is_intact = read_sealed(run / RUN_SETTINGS)
    except OSError:
        return None
    return run_tokenizer(run, settings.get("data", {})) if settings is not None and is_intact else None


def run_tokenizer(run: Path, data: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of the run in the folder `run`; `data` is that entry of its settings.

    None for ids that came without one. Raises `RunError` if the file is not the one that the run began with.
    """
    try:
        check(data, _DATA)
    except MalformedError as error:
        raise RunError(f"{run / RUN_SETTINGS} must describe a run; {error}. Restore another copy.") from None
    if data["tokenizer"] is None:
        # Version 0.1.0 called ids that came without a tokenizer bytes as well.
        is_ids = Path(data.get("path") or "").suffix == ".npy"
        return None if is_ids or data.get("tokenizer_digest", "bytes") is None else ByteTokenizer()
    source = Path(data["tokenizer"])
    copy = run / f"tokenizer{source.suffix}"
    found = read_tokenizer_file(copy if os.path.exists(copy) else source)
    if found.digest != data.get("tokenizer_digest"):
        raise RunError(f"tokenizer must be the run's own; got {found.name}, which differs. Restore it.")
    return found


def kept_file(tokenizer: Tokenizer | None) -> FileTokenizer | None:
    """The tokenizer as a file beside the weights; None for bytes, which need none, and where none is known.

    Raises `DataError` for a tokenizer of somebody's own making: it could not be read again.
    """
    if tokenizer is None or isinstance(tokenizer, (ByteTokenizer, FileTokenizer)):
        return tokenizer if isinstance(tokenizer, FileTokenizer) else None
    raise DataError(
        f"tokenizer must have a file to be kept; got tokenizer={type(tokenizer).__qualname__}. Save it as "
        "tokenizer.json or tokenizer.model and pass the path."
    )
