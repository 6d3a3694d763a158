"""Weights from the Hugging Face hub, by the package huggingface_hub: its cache, tokens and offline mode."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palm.errors import MissingFrameworkError, UpstreamError
from palm.files.names import visible
from palm.files.read import reading

PREFIX = "hub:"
_SUFFIXES = (".pt", ".pth", ".safetensors")
_ADDRESS = re.compile(r"hub:(?P<repository>[\w.-]+/[\w.-]+)(/(?P<file>[^/].*))?", re.ASCII)
# What the hub's cache calls a large file: the SHA-256 of its bytes. A small one has a shorter name.
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Fetched:
    """A file of a repository: where it is on this machine, the commit that it is of, and its SHA-256."""

    path: Path
    repository: str
    revision: str
    sha256: str


def fetch(address: str, revision: str | None = None) -> Fetched:
    """The file that `hub:OWNER/NAME`, or `hub:OWNER/NAME/FILE`, means, from the cache or the network.

    Without FILE, the one file of the repository that ends in .pt, .pth or .safetensors. `revision` is a
    commit, a branch or a tag; None: the newest. The variables of huggingface_hub hold: `HF_HUB_OFFLINE`,
    `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`. Raises `MissingFrameworkError` without huggingface_hub,
    `UpstreamError` for another address, for what cannot be had, and for a damaged file.
    """
    meant = _ADDRESS.fullmatch(address)
    if meant is None or ".." in Path(meant["file"] or "").parts:
        raise UpstreamError(
            f"file must be hub:OWNER/NAME or hub:OWNER/NAME/FILE; got file={address!r}. "
            "For example, hub:conceptofmind/palm-410m."
        )
    repository = meant["repository"]
    folder = _snapshot(repository, meant["file"], revision)
    path = _the_one(folder, meant["file"], repository)
    try:
        with reading(path) as reader:
            sha256 = reader.finish()
    except OSError as error:
        raise UpstreamError(f"file must be readable; got {path}: {error.strerror}. Fetch it again.") from None
    stored = path.resolve().name
    if _DIGEST.fullmatch(stored) and stored != sha256:
        raise UpstreamError(
            f"{path.name} must have the SHA-256 that the hub tells, {stored}; got sha256={sha256}. "
            f"Delete {path.resolve()} and import it again."
        )
    return Fetched(path, repository, folder.name, sha256)


def _snapshot(repository: str, file: str | None, revision: str | None) -> Path:
    """The folder of a commit in the hub's cache, with the weights of it."""
    wanted = [f"*{suffix}" for suffix in _SUFFIXES] if file is None else [file]
    hub = _hub()
    try:
        return Path(hub.snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except Exception as error:  # of the network, of the hub, of the disk: each has its own
        told = visible(str(error).strip().partition("\n")[0])
        raise UpstreamError(
            f"hub:{repository} must be reachable or in the cache; got {type(error).__name__}: {told} "
            "Check its name and the network, set HF_TOKEN if it is private, or pass a file."
        ) from None


def _the_one(folder: Path, file: str | None, repository: str) -> Path:
    found = [folder / file] if file is not None else [p for p in folder.rglob("*") if p.suffix in _SUFFIXES]
    found = sorted(path for path in found if path.is_file())
    if len(found) != 1:
        names = ", ".join(visible(str(path.relative_to(folder))) for path in found[:6])
        raise UpstreamError(
            f"hub:{repository} must have {file or 'one file of weights'}; got {names or 'none'}. "
            f"Name the file: hub:{repository}/FILE."
        )
    return found[0]


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise MissingFrameworkError(
            'hub: needs huggingface_hub; it is not installed. Run: pip install "palm-dual[hub]".'
        ) from None
