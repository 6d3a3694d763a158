"""The checkpoints of a run are written: at once, or behind its steps.

Behind them the state is copied, and a thread writes the copy while the next steps are made. What several
processes do together for a checkpoint, they do in their main threads at the edge of a step: in another thread
it could come between the collectives of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from palm.backends import config_of
from palm.checkpoint.background import Background, snapshot
from palm.checkpoint.progress import Progress
from palm.checkpoint.team import Saving, team_of
from palm.data.tokenizer_file import FileTokenizer
from palm.models import to_numpy
from palm.training.run_folder import Run
from palm.wings import TrainerProtocol, Wing


class _Begun(NamedTuple):
    """A checkpoint that is being written: its step, what remains to be done, and what is open until then."""

    step: int
    since: int | None
    seal: Callable[[], None]
    stack: ExitStack


class Saver:
    """Writes the checkpoints of a run, one after the other; all processes must make the same calls.

    Each method raises what `palm.save` raises, and `RunError`.
    """

    def __init__(
        self, folder: Run, processes: Wing[Any], tokenizer: FileTokenizer | None, *, keep: int
    ) -> None:
        self.last: int | None = None  # the step of which there is a checkpoint, or there will be
        self._folder, self._processes, self._tokenizer, self._keep = folder, processes, tokenizer, keep
        self._background = Background()
        self._begun: _Begun | None = None

    def begin(
        self,
        step: int,
        trainer: TrainerProtocol[Any],
        fields: dict[str, Any],
        *,
        since: int | None,
        behind: bool,
    ) -> None:
        """Write the checkpoint of a step, or begin to. The older ones since `since` are kept."""
        self.finish()
        with ExitStack() as stack:
            if self._processes.mesh_of_model(trainer.model).size > 1:
                write, seal = self._in_pieces(step, trainer, fields, stack, behind=behind)
            else:
                write, seal = self._whole(step, trainer, fields)
            if behind:
                self._background.start(write)
            else:
                write()
            self._begun, self.last = _Begun(step, since, seal, stack.pop_all()), step
        if not behind:
            self.finish()

    def settle(self) -> None:
        """Finish what was begun, if that need not be waited for."""
        if self._begun is not None and not self._processes.agreed(self._background.busy):
            self.finish()

    def finish(self) -> None:
        """Wait until what was begun is a checkpoint; the older ones go then."""
        begun = self._begun
        if begun is None:
            return
        self._background.join()  # if that is interrupted, it is still begun
        self._begun = self.last = None
        with begun.stack:
            self._background.wait()
            begun.seal()
            self._processes.wait()  # a process that goes back to it must find it
        self.last = begun.step
        self._folder.prune(self._keep, since=begun.since)

    def give_up(self) -> None:
        """Leave what was begun, without the other processes, which may be gone. Raises nothing."""
        begun, self._begun = self._begun, None
        if begun is not None:
            self._background.join()
            begun.stack.close()

    def _whole(
        self, step: int, trainer: TrainerProtocol[Any], fields: dict[str, Any]
    ) -> tuple[Callable[[], None], Callable[[], None]]:
        config, arrays = config_of(trainer.model), to_numpy(trainer.model)
        progress = Progress(fields, trainer.moments())

        def write() -> None:
            self._folder.sync()  # a checkpoint's lines are on the disk before it is
            self._folder.save(step, config, arrays, progress, self._tokenizer)

        return write, _nothing

    def _in_pieces(
        self,
        step: int,
        trainer: TrainerProtocol[Any],
        fields: dict[str, Any],
        stack: ExitStack,
        *,
        behind: bool,
    ) -> tuple[Callable[[], None], Callable[[], None]]:
        path, team = self._folder.path_of(step), team_of(self._processes)
        saving = Saving(config_of(trainer.model), path, team, fields=fields, tokenizer=self._tokenizer)
        stack.enter_context(saving)
        pieces = snapshot(trainer.pieces()) if behind else trainer.pieces()

        def write() -> None:
            self._folder.sync()
            saving.write(pieces)

        return write, saving.finish


@contextmanager
def noted(error: BaseException, what: str) -> Iterator[None]:
    """What goes wrong after an error is a note of that."""
    try:
        yield
    except Exception as second:
        error.add_note(f"{what}: {second}")


def _nothing() -> None:
    """A checkpoint of one process is whole once it is written."""
