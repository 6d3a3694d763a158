"""Sealed files: a JSON object with its own SHA-256, the name of its format, and the version of that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from palm.files.objects import MOST_BYTES, MalformedError, parse_object
from palm.files.read import read_file


def sealed(manifest: Mapping[str, Any]) -> str:
    """The manifest's text, which carries the SHA-256 of itself: everything else is checked through it.

    Raises `ValueError` for numbers that JSON does not have: NaN and infinities.
    """
    return json.dumps({**manifest, "seal": seal_of(manifest)}, indent=1, sort_keys=True) + "\n"


def seal_of(manifest: Mapping[str, Any]) -> str:
    """The SHA-256 that `sealed` gives a manifest."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, allow_nan=False).encode()).hexdigest()


def read_sealed(file: Path) -> tuple[dict[str, Any] | None, bool]:
    """What `sealed` was given, None if the file holds no object; and whether not a byte of it has changed.

    Raises `OSError` for a file that cannot be read or has more than 64 MiB.
    """
    text = read_file(file, MOST_BYTES)
    try:
        content = parse_object(text)
    except MalformedError:
        return None, False
    content.pop("seal", None)
    return content, text == sealed(content).encode()


def read_format(file: Path, name: str, versions: Collection[int], damaged: Exception) -> dict[str, Any]:
    """What `sealed` was given, of this format and one of the versions.

    Raises `damaged` unless the file is as it was written, an error of that kind as `check_format` does, and
    `OSError` as `read_sealed` does.
    """
    content, is_intact = read_sealed(file)
    if content is not None:
        check_format(file, content, name, versions, type(damaged))  # another version may seal otherwise
    if content is None or not is_intact:
        raise damaged
    return content


def check_format(
    file: Path, content: Mapping[str, Any], name: str, versions: Collection[int], kind: type[Exception]
) -> None:
    """Raise an error of this kind unless a sealed file is of the format and of one of the versions."""
    if content.get("format") != name or content.get("version") not in versions:
        raise kind(
            f"{file} must be of format {name} version {' or '.join(map(str, versions))}; got "
            f"format={content.get('format')!r}, version={content.get('version')!r}. "
            "Read it with the palm version that wrote it."
        )
