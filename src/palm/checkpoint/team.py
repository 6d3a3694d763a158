"""A checkpoint that several processes save together: each writes the pieces it owns, the first one seals.

No process ever holds a whole tensor. All write into one folder under a hidden name. Once the pieces of all
are on the disk, the first one checks that they make up each tensor, writes the manifest, and gives the folder
its name in one step. Whichever process dies whenever, what has the name is the old or the new as a whole, and
the next saving removes what is left.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palm.checkpoint.about import check_free, free_path, writable, write_about
from palm.checkpoint.grids import MOST_PIECES
from palm.checkpoint.manifest import MANIFEST
from palm.checkpoint.parts import seal, write_pieces
from palm.config import PaLMConfig
from palm.data.tokenizer_file import FileTokenizer
from palm.errors import CheckpointError, PalmError
from palm.files.hidden import held
from palm.files.write import new_folder, put_in_place
from palm.spec.boxes import Piece
from palm.spec.mesh import Mesh, cuts

_DONE, _FAILED = b"+", b"-"


def check_listable(config: PaLMConfig, mesh: Mesh, *, with_moments: bool) -> None:
    """Raise `CheckpointError` for a model, with the moments of its training, on a mesh that cuts them into
    more pieces than a manifest has room for."""
    pieces = sum(
        math.prod(1 if axis is None else mesh.shape[axis] for axis in cut)
        for cut in cuts(config, mesh).values()
    )
    pieces *= 3 if with_moments else 1
    if pieces > MOST_PIECES:
        raise CheckpointError(
            f"mesh must cut what a checkpoint holds into at most {MOST_PIECES:,} pieces, for which "
            f"{MANIFEST} has room; got mesh={mesh}, which makes {pieces:,}. Give pod more of the devices: it "
            "cuts no weights."
        )


@dataclass(frozen=True)
class Team:
    """The processes that save one checkpoint: the number of this one, from 0, and how many there are.

    `share` gives to all what the first one gives it; `wait` returns once all have come there.
    """

    process: int
    processes: int
    share: Callable[[bytes], bytes]
    wait: Callable[[], None]


def alone() -> Team:
    """The team of one process."""
    return Team(0, 1, lambda content: content, lambda: None)


def team_of(processes: Any) -> Team:
    """The team of all processes that a wing knows of: `processes` is a `palm.wings.Wing`."""
    process, count = processes.numbered()
    return Team(process, count, processes.share, processes.wait)


def save_pieces(
    config: PaLMConfig,
    pieces: Iterable[Piece],
    path: str | os.PathLike[str],
    team: Team,
    *,
    overwrite: bool = False,
    fields: Mapping[str, Any] | None = None,
    tokenizer: FileTokenizer | None = None,
) -> Path:
    """`palm.save` by all processes of a team at once, each of which gives the pieces that it owns.

    Pieces of moments, of a run in progress that has these `fields`, are called `first.NAME`, `second.NAME`.
    Where one process fails all raise an error: `CheckpointError`, or in that process also `WeightsError` for
    what is not finite or not of one dtype.
    """
    path = Path(path)
    with Saving(config, path, team, overwrite=overwrite, fields=fields, tokenizer=tokenizer) as saving:
        saving.write(pieces)
        saving.finish()
    return path


class Saving:
    """`save_pieces` in steps: enter, `write`, which another thread may do, and `finish`.

    All processes enter and finish at once. Raises what `save_pieces` raises.
    """

    def __init__(
        self,
        config: PaLMConfig,
        path: Path,
        team: Team,
        *,
        overwrite: bool = False,
        fields: Mapping[str, Any] | None = None,
        tokenizer: FileTokenizer | None = None,
    ) -> None:
        self._config, self._path, self._team, self._overwrite = config, path, team, overwrite
        self._fields, self._tokenizer = fields, tokenizer
        self._stack = ExitStack()
        self._folder = path
        self._failed: PalmError | None = None

    def __enter__(self) -> Saving:
        def make() -> bytes:
            with writable(self._path):
                free_path(self._path, overwrite=self._overwrite)
                return os.fsencode(self._stack.enter_context(new_folder(self._path)).name)

        try:
            self._folder = self._path.with_name(os.fsdecode(_by_first(self._team, make)))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self, pieces: Iterable[Piece]) -> None:
        """Write the pieces of this process. What goes wrong is raised by `finish`: the others wait there."""
        try:
            with writable(self._path):
                self._stack.enter_context(held(self._folder))
                write_pieces(self._folder, self._team.process, self._team.processes, pieces)
        except PalmError as error:
            self._failed = error

    def finish(self) -> None:
        """Wait for the others, and have the first one seal."""

        def seal_whole() -> bytes:
            if self._failed is not None:
                raise self._failed
            with writable(self._path):
                files = write_about(self._config, self._fields, self._tokenizer, self._folder)
                seal(self._folder, self._path, self._config, files, self._team.processes)
                check_free(self._path, overwrite=self._overwrite)
                put_in_place(self._folder, self._path)
            return b""

        self._team.wait()
        try:
            _by_first(self._team, seal_whole)
        except CheckpointError as error:
            raise self._failed or error from None


def _by_first(team: Team, action: Callable[[], bytes]) -> bytes:
    """What an action of the first process gives, in all of them. Where it fails, all raise an error."""
    failed: PalmError | None = None
    told = b""
    if team.process == 0:
        try:
            told = _DONE + action()
        except PalmError as error:
            failed, told = error, _FAILED + str(error).encode(errors="replace")
    told = team.share(told)
    if failed is not None:
        raise failed
    if not told.startswith(_DONE):
        raise CheckpointError(told.removeprefix(_FAILED).decode())
    return told.removeprefix(_DONE)
