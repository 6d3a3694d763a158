"""Where the log of a run goes besides its folder: TensorBoard, wandb, trackio, a function of the user's."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from palm.errors import ConfigError
from palm.training.trained import Entry, OnStep

LoggerName = Literal["tensorboard", "wandb", "trackio"]


@dataclass(frozen=True)
class About:
    """What a logger is told of a run: its name, its folder if it has one, and its settings as JSON values."""

    name: str
    folder: Path | None
    settings: Mapping[str, Any]


class Logger(Protocol):
    """Takes the lines of a run's log. Whatever it raises ends no run; it is given no other line then."""

    def open(self, run: About) -> None:
        """Begin; called once, with the first line. The folder of a new run may be written to from then on."""

    def log(self, entry: Entry) -> None:
        """Take a line: numbers by name, `step` among them. A run that diverged may come to a step again."""

    def close(self) -> None:
        """End; called once, if `open` returned."""


# What `palm.train` takes for a logger.
AnyLogger = LoggerName | OnStep | Logger


class TensorBoard:
    """RUN/tensorboard.

    tensorboardX's own SummaryWriter writes in a thread, which dies on a full disk; who gives it more waits
    for ever. So its file is written here.
    """

    def open(self, run: About) -> None:
        """Begin a file of events."""
        from tensorboardX.event_file_writer import EventsWriter  # noqa: PLC0415 - an extra

        assert run.folder is not None
        folder = run.folder / "tensorboard"
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))

    def log(self, entry: Entry) -> None:
        """Write each number under its name."""
        from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415
        from tensorboardX.summary import scalar  # noqa: PLC0415

        for name, value in entry.items():
            if name != "step":
                event = Event(wall_time=time.time(), step=int(entry["step"]), summary=scalar(name, value))
                self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases in RUN/wandb: offline, unless the variable WANDB_MODE says otherwise."""

    def open(self, run: About) -> None:
        """Begin a run in the project palm. Each start of a run of palm is one, in a group of its name."""
        import wandb  # noqa: PLC0415 - an extra

        mode = cast("Any", os.environ.get("WANDB_MODE", "offline"))
        # It would take over the streams of the process, and print on them.
        settings = wandb.Settings(console="off", silent=True)
        options = {"name": run.name, "group": run.name, "config": dict(run.settings), "dir": run.folder}
        self._run: Any = wandb.init(project="palm", mode=mode, settings=settings, **cast("Any", options))
        # wandb's own count of steps takes none twice.
        self._run.define_metric("*", step_metric="step")

    def log(self, entry: Entry) -> None:
        """Log the line."""
        self._run.log(entry)

    def close(self) -> None:
        """Wait until all is written."""
        self._run.finish()


class Trackio:
    """A run of trackio, in trackio's own folder."""

    def open(self, run: About) -> None:
        """Begin a run in the project palm. Each start of a run of palm is one, in a group of its name."""
        import trackio  # noqa: PLC0415 - an extra

        with redirect_stdout(sys.stderr):  # it greets
            self._run: Any = trackio.init(
                project="palm", group=run.name, config=dict(run.settings), embed=False
            )

    def log(self, entry: Entry) -> None:
        """Log the line under its step."""
        numbers = {name: value for name, value in entry.items() if name != "step"}
        self._run.log(numbers, step=int(entry["step"]))

    def close(self) -> None:
        """Wait until all is written."""
        with redirect_stdout(sys.stderr):
            self._run.finish()


class Calls:
    """Calls a function with each line."""

    def __init__(self, function: OnStep) -> None:
        self._function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def open(self, run: About) -> None:
        """Nothing."""

    def log(self, entry: Entry) -> None:
        """Call it."""
        self._function(entry)

    def close(self) -> None:
        """Nothing."""


@dataclass(frozen=True)
class _Kind:
    """A logger that has a name: what makes it, the module that it needs, and whether it writes into RUN."""

    make: Callable[[], Logger]
    module: str
    needs_folder: bool


_KINDS: dict[str, _Kind] = {
    "tensorboard": _Kind(TensorBoard, "tensorboardX", True),
    "wandb": _Kind(Wandb, "wandb", True),
    "trackio": _Kind(Trackio, "trackio", False),
}


def make_loggers(given: Sequence[AnyLogger], out: object) -> list[Logger]:
    """The loggers that are given by name, as a function, or as themselves. `out`: the run's folder, or None.

    Raises `ConfigError` for what is none of these, for one whose package is not installed, and for one that
    needs a folder where there is none.
    """
    if isinstance(given, str):
        raise ConfigError(f'loggers must be a list; got loggers="{given}". Write ["{given}"].')
    return [_made(one, out) for one in given]


def _made(given: AnyLogger, out: object) -> Logger:
    if isinstance(given, str):
        if given not in _KINDS:
            raise ConfigError(
                f"loggers must be of {', '.join(_KINDS)}, or functions; got {given!r}. Choose one."
            )
        kind = _KINDS[given]
        if importlib.util.find_spec(kind.module) is None:
            raise ConfigError(
                f"the logger {given} needs {kind.module}; it is not installed. "
                f'Run: pip install "palm-dual[{given}]".'
            )
        if kind.needs_folder and out is None:
            raise ConfigError(
                f"the logger {given} must have the folder of a run; got out=None. Give one with out=."
            )
        return kind.make()
    if all(hasattr(given, name) for name in ("open", "log", "close")):
        return cast("Logger", given)
    if callable(given):
        return Calls(given)
    raise ConfigError(
        f"loggers must be of {', '.join(_KINDS)}, or functions; got {type(given).__name__}. "
        "Give a function of an entry of the log, or an object with open, log and close."
    )
