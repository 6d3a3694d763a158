"""What a checkpoint has beside its tensors, and where one may be written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from palm.checkpoint.manifest import CONFIG, MANIFEST, TRAINING, fingerprint
from palm.config import PaLMConfig
from palm.data.tokenizer_file import FileTokenizer
from palm.errors import CheckpointError
from palm.files.hidden import recover
from palm.files.write import remedy, write_file


def write_about(
    config: PaLMConfig, fields: Mapping[str, Any] | None, tokenizer: FileTokenizer | None, folder: Path
) -> dict[str, dict[str, Any]]:
    """Write the config, the `fields` of a run in progress and the tokenizer; their entries in the manifest.

    Raises `OSError`.
    """
    write_file(folder / CONFIG, config.to_json().encode())
    files = {CONFIG: fingerprint(folder / CONFIG)}
    if fields is not None:
        write_file(folder / TRAINING, (json.dumps(fields, indent=1) + "\n").encode())
        files[TRAINING] = fingerprint(folder / TRAINING)
    if tokenizer is not None:
        write_file(folder / tokenizer.file, tokenizer.content)
        files[tokenizer.file] = fingerprint(folder / tokenizer.file)
    return files


def free_path(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """The path, after what was to be there has been recovered. Raises `CheckpointError` if it is taken."""
    path = Path(path)
    if not path.name or "\0" in path.name:
        raise CheckpointError(f"path must end in a name of its own; got path={path}. Choose another.")
    recover(path)
    check_free(path, overwrite=overwrite)
    return path


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raise `CheckpointError` unless a checkpoint may be written there."""
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise CheckpointError(f"path must not exist yet; got path={path}. Remove it or pass overwrite=True.")
    if not os.path.isfile(path / MANIFEST):
        raise CheckpointError(
            f"path must be a checkpoint to be overwritten; got path={path} without {MANIFEST}. "
            "Remove it first."
        )


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turn what goes wrong with the disk while a checkpoint is written into a `CheckpointError`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"path must be writable; got path={path}: {error}. {remedy(error)}") from error
