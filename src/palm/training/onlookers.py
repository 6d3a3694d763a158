"""Who follows the steps of a run without being part of it: loggers, and a profile of some steps."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from palm.errors import ConfigError
from palm.training.loggers import About, AnyLogger, Logger, make_loggers
from palm.training.trained import Entry
from palm.wings import Wing

# Steps of a start that compile, and are slower than the others.
WARM_UP = 2
# Traces what happens meanwhile into a folder.
Profiler = Callable[[Path], AbstractContextManager[None]]


@dataclass(frozen=True)
class Profile:
    """Which steps are traced: `first` to `last`; or, if `first` is None, `last` steps after the warm-up."""

    first: int | None
    last: int

    @staticmethod
    def of(given: str | int, out: object) -> Profile:
        """From `10-12`, or a number of steps. Raises `ConfigError`, also without `out`, the run's folder."""
        found = re.fullmatch(r"(?:([1-9]\d{0,17})-)?([1-9]\d{0,17})", str(given))
        first, last = (None, 0) if found is None else (found[1] and int(found[1]), int(found[2]))
        if isinstance(given, bool) or last < (first or 1):
            raise ConfigError(
                "profile must be a number of steps, or the first and the last one as in 10-12; got "
                f"profile={given!r}. Use one of these."
            )
        if out is None:
            raise ConfigError(
                "a profile must have the folder of a run to be written to; got out=None. Give one with out=."
            )
        return Profile(first or None, last)

    def from_step(self, step: int) -> Profile:
        """The same with `first`, in a start whose first step is `step`."""
        if self.first is not None:
            return self
        return Profile(step + WARM_UP, step + WARM_UP + self.last - 1)


class Onlookers:
    """The loggers of a run and its profile. What goes wrong in one of them ends that one, and not the run.

    `failed` says in a sentence each what went wrong.
    """

    def __init__(
        self,
        run: About,
        loggers: Sequence[Logger] = (),
        profile: Profile | None = None,
        profiler: Profiler | None = None,
    ) -> None:
        self.failed: list[str] = []
        self._run, self._waiting, self._open = run, list(loggers), list[Logger]()
        self._profile, self._profiler = profile, profiler
        self._tracing: AbstractContextManager[None] | None = None
        self._step = 0  # the last one that was seen

    def before(self, step: int) -> None:
        """Begin to trace, if this step is the first one to be traced."""
        if self._profile is None or self._profiler is None or self._run.folder is None:
            return
        self._profile = self._profile.from_step(step)
        if step == self._profile.first and self._tracing is None:
            tracing = self._profiler(self._run.folder / "profile" / f"step-{step:08d}")
            if self._does("the profile", tracing.__enter__):
                self._tracing = tracing
            else:
                self._profile = None

    def after(self, entry: Entry) -> None:
        """Give each logger a line of the log, and write the trace after the last step to be traced."""
        self._step = int(entry["step"])
        if self._tracing is not None and self._profile is not None and self._step >= self._profile.last:
            self._end_trace()
        for logger in self._waiting:
            if self._does(_name(logger), partial(logger.open, self._run)):
                self._open.append(logger)
        self._waiting = []
        for logger in list(self._open):
            # A copy: the entry is the run's.
            if not self._does(_name(logger), partial(logger.log, dict(entry))):
                self._open.remove(logger)
                with suppress(Exception):
                    logger.close()

    def close(self) -> None:
        """End all of them."""
        if self._tracing is not None:
            self._end_trace()
        elif self._profile is not None and self._profile.first is not None:
            self.failed.append(f"the profile failed: step {self._profile.first} was not made")
        for logger in self._open:
            self._does(_name(logger), logger.close)
        self._open = []

    def _end_trace(self) -> None:
        tracing, self._tracing, self._profile = self._tracing, None, None
        assert tracing is not None
        self._does("the profile", lambda: tracing.__exit__(None, None, None))

    def _does(self, name: str, act: Callable[[], object]) -> bool:
        """Whether it is done without an error."""
        try:
            act()
        except Exception as error:
            self.failed.append(f"{name} failed after step {self._step}: {error}")
            return False
        return True


def make_onlookers(
    out: str | os.PathLike[str] | None,
    settings: Mapping[str, Any],
    wing: Wing[Any],
    loggers: Sequence[AnyLogger],
    profile: str | int | None,
) -> Onlookers:
    """Those that `palm.train` is asked for; none in a process that is not the first one.

    Raises `ConfigError` for what cannot be, before anything is written.
    """
    made = make_loggers(loggers, out)
    steps = None if profile is None else Profile.of(profile, out)
    folder = None if out is None else Path(out)
    about = About("palm" if folder is None else folder.resolve().name, folder, settings)
    return Onlookers(about, made, steps, wing.profiled) if wing.is_first() else Onlookers(about)


def _name(logger: Logger) -> str:
    return str(getattr(logger, "name", type(logger).__name__))
