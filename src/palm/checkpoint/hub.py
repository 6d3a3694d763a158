"""Models from the Hugging Face hub, by the package huggingface_hub: its cache, tokens and offline mode."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from palm.backends import check_installed
from palm.checkpoint.manifest import CONFIG
from palm.checkpoint.transformers import FILES, MODEL_TYPE, Exported, read_folder
from palm.config import Backend, DType
from palm.data.remembered import remember_tokenizer
from palm.errors import MissingFrameworkError, UpstreamError
from palm.files.names import visible
from palm.files.objects import MalformedError, parse_object
from palm.files.read import Reader, read_file, reading
from palm.models import from_numpy
from palm.spec.mesh import AnyMesh

if TYPE_CHECKING:
    from palm.backends import JaxModel, Model, TorchModel

PREFIX = "hub:"
_SUFFIXES = (".pt", ".pth", ".safetensors")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_ADDRESS = re.compile(rf"hub:(?P<repository>{_REPOSITORY.pattern})(/(?P<file>[^/].*))?", re.ASCII)
# What the hub's cache calls a large file: the SHA-256 of its bytes. A small one: the SHA-1 that git gives it.
_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
_MOST_SMALL = 1 << 30


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
    repository, file = meant["repository"], meant["file"]
    folder = _snapshot(repository, [f"*{end}" for end in _SUFFIXES] if file is None else [file], revision)
    path = _the_one(folder, file, repository)
    files = _Verified()
    try:
        with files.opened(path):
            pass
    except OSError as error:
        raise UpstreamError(f"file must be readable; got {path}: {error.strerror}. Fetch it again.") from None
    return Fetched(path, repository, folder.name, files.digests[path.name])


def is_exported(address: str, revision: str | None = None) -> bool:
    """Whether `hub:OWNER/NAME` is a repository that `palm push` wrote, by its config; False of a file in one.

    Raises what `fetch` raises for what cannot be had.
    """
    repository = address.removeprefix(PREFIX)
    if not _REPOSITORY.fullmatch(repository):
        return False
    # The second is in each repository: huggingface_hub warns where no file is of the patterns.
    config = _snapshot(repository, [CONFIG, ".gitattributes"], revision) / CONFIG
    try:
        return parse_object(read_file(config, _MOST_SMALL)).get("model_type") == MODEL_TYPE
    except (OSError, MalformedError):
        return False


def fetch_exported(repository: str, revision: str | None = None) -> tuple[Exported, dict[str, str]]:
    """The model that `palm push` wrote to the repository OWNER/NAME; and its origin, for a manifest.

    Only the config, the weights and the tokenizer are fetched, and no code. The origin has the repository,
    the commit, and the SHA-256 of each file that was read. Variables and errors are those of `fetch`, and
    `CheckpointError` for a repository that does not hold such a model.
    """
    check_repository(repository)
    folder = _snapshot(repository, FILES, revision)
    files = _Verified()
    told = f"{PREFIX}{repository} at {folder.name}"
    model = read_folder(folder, told=told, opened=files.opened)
    digests = {f"sha256 of {name}": digest for name, digest in files.digests.items()}
    return model, {"source": "transformers", "repository": repository, "revision": folder.name, **digests}


@overload
def from_hub(
    repository: str,
    *,
    backend: Literal["torch"],
    revision: str | None = ...,
    dtype: DType | None = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str = ...,
) -> TorchModel: ...


@overload
def from_hub(
    repository: str,
    *,
    backend: Literal["jax"],
    revision: str | None = ...,
    dtype: DType | None = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str = ...,
) -> JaxModel: ...


@overload
def from_hub(
    repository: str,
    *,
    backend: Backend,
    revision: str | None = ...,
    dtype: DType | None = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str = ...,
) -> Model: ...


def from_hub(
    repository: str,
    *,
    backend: Backend,
    revision: str | None = None,
    dtype: DType | None = None,
    device: Any = None,
    mesh: AnyMesh = None,
    attention: str = "auto",
) -> Model:
    """The model that `palm.push_to_hub` wrote to `repository`, "OWNER/NAME"; bitwise, unless `dtype` differs.

    `revision` is a commit, a branch or a tag; None: the newest. Its tokenizer comes with it
    (`palm.tokenizer_of`). What is in the cache of huggingface_hub is not downloaded again, and
    `HF_HUB_OFFLINE=1` uses that cache alone. No code of the repository is downloaded or run.

    Raises `MissingFrameworkError` without huggingface_hub, `UpstreamError` for what cannot be had or is
    damaged, `CheckpointError` for a repository without such a model, and what `palm.build` raises.
    """
    check_installed(backend)
    exported, _ = fetch_exported(repository, revision)
    options: dict[str, Any] = {"dtype": dtype, "device": device, "mesh": mesh, "attention": attention}
    model = from_numpy(exported.config, exported.arrays, backend=backend, **options)
    remember_tokenizer(model, exported.tokenizer)
    return model


def check_repository(repository: str) -> None:
    """Raise `UpstreamError` unless this is OWNER/NAME."""
    if not isinstance(repository, str) or not _REPOSITORY.fullmatch(repository):
        raise UpstreamError(
            f"repository must be OWNER/NAME; got repository={repository!r}. For example, me/my-palm."
        )


def client() -> Any:
    """The package huggingface_hub. Raises `MissingFrameworkError` if it is not installed."""
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise MissingFrameworkError(
            'hub: needs huggingface_hub; it is not installed. Run: pip install "palm-dual[hub]".'
        ) from None


def reason(error: BaseException) -> str:
    """What went wrong, in one line: the network, the hub and the disk each have errors of their own."""
    return f"{type(error).__name__}: {visible(str(error).strip().partition(chr(10))[0])}"


@dataclass
class _Verified:
    """Opens files of the hub's cache, and holds each against its name there. `digests`: by name, SHA-256."""

    digests: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def opened(self, path: Path) -> Iterator[Reader]:
        """The file to read once. Raises `UpstreamError` for a damaged one, whatever its content is."""
        with reading(path) as reader:
            try:
                yield reader
            except MalformedError:
                _check_stored(path, reader.finish())
                raise
            self.digests[path.name] = reader.finish()
            _check_stored(path, self.digests[path.name])


def _check_stored(path: Path, sha256: str) -> None:
    """Raise `UpstreamError` unless a file of this SHA-256 is the one that the hub tells."""
    stored = path.resolve().name
    kind, found = "SHA-256", {sha256}
    if _SHA1.fullmatch(stored):
        content = read_file(path, _MOST_SMALL)
        kind = "SHA-1"  # of git's object, or, as some mirrors have it, of the content
        found = {hashlib.sha1(head + content).hexdigest() for head in (b"blob %d\0" % len(content), b"")}
    elif not _SHA256.fullmatch(stored):
        return
    if stored not in found:
        raise UpstreamError(
            f"{path.name} must have the {kind} that the hub tells, {stored}; got sha256={sha256}. "
            f"Delete {path.resolve()} and import it again."
        )


def _snapshot(repository: str, wanted: Sequence[str], revision: str | None) -> Path:
    """The folder of a commit in the hub's cache, with the files of these patterns."""
    hub = client()
    try:
        return Path(hub.snapshot_download(repository, revision=revision, allow_patterns=[*wanted]))
    except Exception as error:
        raise UpstreamError(
            f"hub:{repository} must be reachable or in the cache; got {reason(error)} "
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
