"""A recording as a folder: `bundle.json`, sealed by its own checksum, and `arrays.safetensors`, sealed by it.

No framework is needed to read one. Nothing in a bundle is believed: names, shapes and dtypes must be those of
its config, or `BundleError` says which is not.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from palm.checkpoint.manifest import read_tensors
from palm.config import PaLMConfig
from palm.errors import BundleError, CheckpointError, PalmError
from palm.fields import plain
from palm.files.objects import MalformedError
from palm.files.schema import NATURAL, OBJECT, PRINTABLE, SHA256, ByName, Items, Record, check
from palm.files.sealed import read_format, read_sealed, sealed
from palm.files.streamed import write_arrays
from palm.files.write import new_folder, put_in_place, remedy, write_file
from palm.parity.recording.bundle_check import check_recording, number
from palm.parity.recording.excerpt import Excerpt, record_excerpt
from palm.parity.recording.recording import Recording, record
from palm.spec.arrays import Named

FORMAT, VERSION = "palm-bundle", 1
HEADER, ARRAYS = "bundle.json", "arrays.safetensors"
_HEADER = Record(
    {
        "version": NATURAL,
        "arrays": Record({"bytes": NATURAL, "sha256": SHA256}),
        "order": Items(PRINTABLE),
        "config": OBJECT,
        "label": PRINTABLE,
        "environment": ByName(PRINTABLE, PRINTABLE),
    }
)
_KINDS: dict[str, type] = {"complete": Recording, "excerpt": Excerpt}
_GROUPS = {
    "complete": ("weights", "taps", "grads", "exact_taps", "exact_grads"),
    "excerpt": ("taps", "sketches", "exact_sketches"),
}


def is_bundle(path: Path) -> bool:
    """Whether `path` is the folder of a bundle, be it a damaged one."""
    try:
        return (path / HEADER).is_file()
    except OSError:  # no name of a file: too long, or with a zero in it
        return False
    except ValueError:
        return False


def check_free(path: Path) -> None:
    """Raise `BundleError` unless a bundle can be written to `path`: there is none, or nothing but one."""
    try:
        if not os.path.lexists(path):
            return
        names = {file.name for file in path.iterdir()} if path.is_dir() and not path.is_symlink() else None
        header = read_sealed(path / HEADER)[0] if names == {HEADER, ARRAYS} else None
    except (OSError, ValueError) as error:
        raise BundleError(f"out must be a folder; got out={path}: {error}. Choose another.") from None
    if names is None or (names and (header is None or header.get("format") != FORMAT)):
        raise BundleError(
            "out must be a new folder, an empty folder, or a folder that contains only a bundle; got "
            f"out={path}. Choose another folder."
        )


def record_bundle(
    model: Any,
    tokens: Any,
    out: str | PathLike[str],
    *,
    complete: bool = False,
    label: str | None = None,
    seed: int | None = None,
) -> Path:
    """Run a live model once, forward and backward, and keep what it computed in the folder `out`.

    Small by default, an excerpt (`recording.excerpt`); `complete` keeps everything. `seed`: what the
    model's weights were drawn from, if from a seed; an excerpt can then say why, and not only where. Compare
    bundles by their paths: `palm.compare("a", "b")`. Tokens (..., n), n ≥ 2.

    Raises `TokenError`, `BackendError` if the model is not palm's, `BundleError` if `out` cannot be written.
    """
    if complete:
        recording: Recording | Excerpt = record(model, tokens, label=label)
    else:
        recording = record_excerpt(model, tokens, label=label, seed=seed)
    write_bundle(recording, Path(out))
    return Path(out)


def write_bundle(recording: Recording | Excerpt, path: Path) -> None:
    """Write a recording to the folder `path`, which appears when it is whole.

    A bundle there is replaced, and nothing else ever. Raises `BundleError`.
    """
    check_free(path)
    try:
        path = path.resolve()
        with new_folder(path) as folder:
            _write(recording, folder)
            put_in_place(folder, path)
    except OSError as error:
        raise BundleError(
            f"out must be a folder that can be written; got out={path}: {error}. {remedy(error)}"
        ) from None


def _write(recording: Recording | Excerpt, folder: Path) -> None:
    kind = next(kind for kind, cls in _KINDS.items() if isinstance(recording, cls))
    arrays: dict[str, np.ndarray] = {"tokens": recording.tokens}
    for group in _GROUPS[kind]:
        for name, array in getattr(recording, group).items():
            arrays[f"{group}/{name}"] = array
    entry, _ = write_arrays(folder / ARRAYS, arrays)
    header = {name: getattr(recording, name) for name in _plain_fields(kind)}
    header["config"] = recording.config.to_dict()
    if kind == "excerpt":
        header["statistics"] = {
            name: {key: plain(value) for key, value in row.items()}
            for name, row in header["statistics"].items()
        }
    header |= {"format": FORMAT, "version": VERSION, "kind": kind}
    # The file has another order; the report walks the names in dataflow order.
    header |= {"order": list(arrays), "arrays": entry}
    write_file(folder / HEADER, sealed({key: plain(value) for key, value in header.items()}).encode())


def read_bundle(path: Path) -> Recording | Excerpt:
    """The recording in the folder `path`. Raises `BundleError`."""
    header = _read_header(path)
    try:
        arrays = dict(read_tensors(path / ARRAYS, header["arrays"]))
        recording = _assemble(header, arrays)
        check_recording(recording)
    except BundleError as error:
        raise BundleError(f"{path} {error}") from None
    except CheckpointError as error:
        raise BundleError(str(error)) from None
    except PalmError as error:
        raise BundleError(f"{path} must hold what its config says; {error} Record again.") from None
    return recording


def _plain_fields(kind: str) -> list[str]:
    """The fields of a recording that are no arrays, and belong into a bundle."""
    own = (*_GROUPS[kind], "tokens")
    return [
        f.name
        for f in dataclasses.fields(_KINDS[kind])
        if f.name not in own and not (kind == "excerpt" and f.name == "weights")
    ]


def _read_header(path: Path) -> dict[str, Any]:
    file = path / HEADER
    try:
        damaged = BundleError(f"{file} must be as it was written; its checksum differs. Record again.")
        header = read_format(file, FORMAT, (VERSION,), damaged)
    except OSError as error:
        raise BundleError(
            f"bundle must be a folder with {HEADER}; got {path}: {error.strerror}. Write one with palm "
            "record, or load a checkpoint: palm.load."
        ) from None
    kind = header.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise BundleError(f"{file} must be of kind {' or '.join(_KINDS)}; got kind={kind!r}. Record again.")
    try:
        check(header, _HEADER)
    except MalformedError as error:
        raise BundleError(f"{file} must describe a bundle; {error}. Record again.") from None
    return header


def _assemble(header: Mapping[str, Any], arrays: Named) -> Recording | Excerpt:
    kind = header["kind"]
    missing = [name for name in _plain_fields(kind) if name not in header]
    if missing:
        raise BundleError(f"must name {', '.join(missing)}; it does not. Record again.")
    order = header["order"]
    if len(order) != len(arrays) or {*order} != {*arrays}:
        raise BundleError("must list exactly the arrays it has; it does not. Record again.")
    groups: dict[str, Any] = {group: {} for group in _GROUPS[kind]}
    for name in order:
        group, slash, rest = name.partition("/")
        if name == "tokens":
            groups["tokens"] = arrays[name]
        elif slash and group in _GROUPS[kind]:
            groups[group][rest] = arrays[name]
        else:
            raise BundleError(f"must not have unknown arrays; got {name}. Record again.")
    if "tokens" not in groups:
        raise BundleError("must have tokens; it has none. Record again.")
    fields = {name: header[name] for name in _plain_fields(kind)}
    fields["config"] = PaLMConfig.from_dict(fields["config"])
    if fields["config"].depth > len(order):  # before anything is made of so many blocks
        raise BundleError(f"must hold {fields['config'].depth} blocks; it does not. Record again.")
    for name in ("loss", "exact_loss"):
        if name in fields:
            fields[name] = number(fields[name], name)
    return _KINDS[kind](**fields, **groups)
