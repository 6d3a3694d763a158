"""A checkpoint that is written while the steps go on: copied first, then written by a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import numpy as np

from palm.spec.boxes import Piece


def snapshot(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces, copied: steps change what they were taken from. Needs as much memory again as they have."""
    return [piece._replace(array=np.array(piece.array, order="K")) for piece in pieces]


class Background:
    """Work that a thread does, one at a time. It is done to its end also if the process ends before.

    What goes wrong is raised by the next `wait`, once.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Begin work after what was begun before is done. Raises what that has raised."""
        self.wait()
        self._thread = threading.Thread(target=self._do, args=(work,), name="palm checkpoint")
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether something is being done. Does not wait."""
        return self._thread is not None and self._thread.is_alive()

    def join(self) -> None:
        """Return once nothing is being done."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """`join`, and raise what the work has raised."""
        self.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
