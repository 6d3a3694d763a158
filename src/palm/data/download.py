"""Public corpora: where they are, what they must be bit for bit, and the one door to the network."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from palm.errors import DataError
from palm.files.write import fsync, new_folder, remedy

# on_progress(bytes done, bytes in all), as a download goes on.
OnProgress = Callable[[int, int], None]

_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a byte
_DELETE = "Delete it and fetch it anew."


@dataclass(frozen=True)
class Content:
    """What a file must be."""

    size: int
    sha256: str


@dataclass(frozen=True)
class PublicCorpus:
    """A zip archive on the web and the one file in it that is the corpus, called like the corpus."""

    url: str
    archive: Content
    text: Content


CORPORA = {
    # The first 10^8 bytes of the English Wikipedia of 3 March 2006: Hutter, Mahoney.
    "enwik8": PublicCorpus(
        "https://mattmahoney.net/dc/enwik8.zip",
        Content(36_445_475, "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc"),
        Content(100_000_000, "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"),
    )
}


def fetch(name: str, folder: str | os.PathLike[str], *, on_progress: OnProgress | None = None) -> Path:
    """The public corpus `name` as the file `folder`/`name`: verified, and downloaded unless it is there.

    An archive that somebody has put there as `name`.zip is unpacked instead. Under its final name there is
    never a file that has not been verified. Raises `DataError` for an unknown name, a file of another size
    or SHA-256, or where there is no network.
    """
    if name not in CORPORA:
        raise DataError(f"corpus must be one of {', '.join(CORPORA)}; got corpus={name!r}. Use one of these.")
    known = CORPORA[name]
    final = Path(folder) / name
    archive = final.with_name(f"{name}.zip")
    try:
        if final.exists():
            _verify(final, known.text, str(final), _DELETE)
            return final
        # Hidden, so that a corpus opened from this folder has none of it, and gone whatever happens.
        with new_folder(final) as work:
            where, fix = str(archive), _DELETE
            if archive.exists():
                _verify(archive, known.archive, where, fix)
            else:
                where, fix = known.url, f"Try again, or put the right file there by hand as {archive}."
                archive = work / archive.name
                _download(known, archive, fix, on_progress)
            unpacked = work / name
            _unpack(archive, unpacked, where, fix)
            _verify(unpacked, known.text, where, fix)
            fsync(unpacked)
            unpacked.replace(final)
            fsync(final.parent)
    except OSError as error:
        raise DataError(f"{final} must be readable or writable; got {error}. {remedy(error)}") from None
    return final


def _download(known: PublicCorpus, file: Path, fix: str, on_progress: OnProgress | None) -> None:
    import pooch  # noqa: PLC0415 - most commands fetch nothing, and need not load it

    pooch.get_logger().setLevel("WARNING")
    digest = known.archive.sha256
    try:
        with ExitStack() as connection:  # pooch itself leaves one open that breaks off
            downloader = pooch.HTTPDownloader(
                progressbar=False if on_progress is None else _Progress(on_progress),
                chunk_size=_CHUNK,
                timeout=_TIMEOUT,
                hooks={"response": lambda response, **_: connection.enter_context(response)},
            )
            pooch.retrieve(
                known.url, f"sha256:{digest}", fname=file.name, path=file.parent, downloader=downloader
            )
    except OSError as error:
        raise DataError(f"{known.url} must be reachable; got {error}. {fix}") from None
    except ValueError:  # so pooch says that the checksum differs
        raise DataError(
            f"{file.name} must have SHA-256 {digest}; got another file from {known.url}. {fix}"
        ) from None


class _Progress:
    """A progress bar as pooch wants it, which tells somebody else's."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self.total = self._done = 0

    def update(self, size: int) -> None:
        """So many bytes more, at most: the last piece is counted whole."""
        done = min(self._done + size, self.total)
        if done > self._done:
            self._done = done
            self._on_progress(done, self.total)

    def reset(self) -> None:
        """Called before the whole size is told once more."""

    def close(self) -> None:
        """Called at the end."""


def _unpack(archive: Path, file: Path, where: str, fix: str) -> None:
    try:
        with ZipFile(archive) as packed, packed.open(file.name) as source, file.open("wb") as target:
            shutil.copyfileobj(source, target)
    except (BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{where} must be a zip of {file.name}; got {error}. {fix}") from None


def _verify(file: Path, content: Content, where: str, fix: str) -> None:
    """Raise `DataError` unless `file`, which came from `where`, is what it must be."""
    if (size := file.stat().st_size) != content.size:
        raise DataError(f"{file.name} must be {content.size} bytes long; got {size} from {where}. {fix}")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != content.sha256:
        raise DataError(f"{file.name} must have SHA-256 {content.sha256}; got {found} from {where}. {fix}")
