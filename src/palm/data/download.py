"""Public corpora: where they are, what they must be bit for bit, and the one door to the network."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO
from urllib.error import HTTPError
from urllib.request import urlopen

from palm.errors import DataError

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
        final.parent.mkdir(parents=True, exist_ok=True)
        # Hidden, so that a corpus opened from this folder has none of it, and gone whatever happens.
        with TemporaryDirectory(dir=final.parent, prefix=f".{name}-") as work:
            where, fix = str(archive), _DELETE
            if not archive.exists():
                where, fix = known.url, f"Try again, or put the right file there by hand as {archive}."
                archive = Path(work) / archive.name
                _download(known, archive, fix, on_progress)
            _verify(archive, known.archive, where, fix)
            unpacked = Path(work) / name
            _unpack(archive, unpacked, known.text.size, where, fix)
            _verify(unpacked, known.text, where, fix)
            unpacked.replace(final)
    except OSError as error:
        raise DataError(f"{final} must be readable or writable; got {error}. Use another folder.") from None
    return final


def _download(known: PublicCorpus, file: Path, fix: str, on_progress: OnProgress | None) -> None:
    def report(done: int) -> None:
        if on_progress is not None:
            on_progress(done, known.archive.size)

    try:
        with urlopen(known.url, timeout=_TIMEOUT) as source:
            _copy(source, file, known.archive.size, report)
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()  # it is the server's answer, too, and holds the connection
        raise DataError(f"{known.url} must be within reach; got {error}. {fix}") from None


def _unpack(archive: Path, file: Path, size: int, where: str, fix: str) -> None:
    try:
        with zipfile.ZipFile(archive) as packed, packed.open(file.name) as source:
            _copy(source, file, size)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{where} must be a zip of {file.name}; got {error}. {fix}") from None


def _copy(
    source: IO[bytes], file: Path, size: int, report: Callable[[int], None] = lambda done: None
) -> None:
    """Copy `source` up to its end, or to the first bytes beyond `size`: enough to see that it is too long."""
    done = 0
    with file.open("wb") as target:
        while done <= size and (chunk := source.read(_CHUNK)):
            target.write(chunk)
            done += len(chunk)
            report(done)


def _verify(file: Path, content: Content, where: str, fix: str) -> None:
    """Raise `DataError` unless `file`, which came from `where`, is what it must be."""
    if (size := file.stat().st_size) != content.size:
        # Of what is too long, only the beginning was copied.
        found = f"at least {size}" if size > content.size else str(size)
        raise DataError(f"{file.name} must be {content.size} bytes long; got {found} from {where}. {fix}")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != content.sha256:
        raise DataError(f"{file.name} must have SHA-256 {content.sha256}; got {found} from {where}. {fix}")
