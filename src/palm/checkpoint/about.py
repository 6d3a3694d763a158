"""What a checkpoint has beside its tensors, written and read, and where one may be written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from palm.checkpoint.manifest import CONFIG, MANIFEST, TRAINING, fingerprint, has_grids, read_verified
from palm.config import BACKENDS, PaLMConfig
from palm.data.tokenizer_file import FileTokenizer
from palm.errors import CheckpointError, ConfigError
from palm.files.hidden import recover
from palm.files.objects import MalformedError, parse_object
from palm.files.schema import NATURAL, NUMBER, OBJECT, Optional, Record, check, one_of
from palm.files.write import remedy, write_file
from palm.spec.parameters import parameters

_STEP = re.compile("step-[0-9]+")
_TRAINING = Record(
    {"step": NATURAL, "row": NATURAL, "rewinds": NATURAL, "spike": NATURAL},
    optional={
        "val_loss": Optional(NUMBER),
        "backend": one_of(*BACKENDS),
        "recipe": OBJECT,
    },
)


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


def read_fields(path: Path, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the checkpoint at `path` says of its run; None for a model without one. Raises `CheckpointError`.

    A folder that is called after a step must be called after its own: who trusts the name deletes by it.
    """
    if TRAINING not in manifest["files"]:
        return None
    file = path / TRAINING
    content = read_verified(file, manifest["files"][TRAINING])
    try:
        fields = parse_object(content)
        check(fields, _TRAINING)
    except MalformedError as error:
        raise CheckpointError(f"{file} must describe a run; {error}. Restore another copy.") from None
    name = path.absolute().name
    if _STEP.fullmatch(name) and name != f"step-{fields['step']:08d}":
        raise CheckpointError(
            f"{path} must be called after its step; got step={fields['step']}. Rename it to "
            f"step-{fields['step']:08d}."
        )
    return fields


def read_config(path: Path, manifest: Mapping[str, Any]) -> PaLMConfig:
    """The config of the checkpoint at `path`. Raises `CheckpointError`."""
    try:
        content = read_verified(path / CONFIG, manifest["files"].get(CONFIG))
        config = PaLMConfig.from_dict(parse_object(content))
        listed = sum(
            len(entry.get("tensors", entry.get("pieces", ())))
            for entry in ([manifest] if has_grids(manifest) else manifest["files"].values())
        )
        if config.depth > listed:  # before a table is made of so many blocks
            raise CheckpointError(
                f"{path} must hold {config.depth} blocks; got {listed} tensors. Save it again."
            )
        parameters(config)
    except (ConfigError, MalformedError) as error:
        raise CheckpointError(f"{path / CONFIG} must hold a resolved config; {error}") from None
    return config


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
