"""A disk that fails, and a process that dies, at any one of the calls by which files are changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from palm.files import write

CHANGES = ("open", "write", "fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "chmod", "ftruncate")


class Disk:
    """Counts the calls that change files; before call `at`, or in the middle of it, `happens` is called.

    `for_good`: before all later calls, too.
    """

    def __init__(self, at: int, happens: Callable[[], Any], *, for_good: bool = False) -> None:
        self.at, self.happens, self.for_good, self.calls = at, happens, for_good, []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in CHANGES:
            patch.setattr(os, name, self._watched(name, getattr(os, name)))
        patch.setattr(write, "_exchange", self._watched("_exchange", write._exchange))

    def _watched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR):
                return original(*arguments, **options)
            self.calls.append(name)
            if self.for_good and len(self.calls) > self.at:
                self.happens()
            if len(self.calls) == self.at:
                if name == "write":  # half of it gets through
                    original(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                self.happens()
            return original(*arguments, **options)

        return call


def changes(action: Callable[[], Any]) -> list[str]:
    """The calls that an action makes."""
    disk = Disk(0, lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        disk.install(patch)
        action()
    return disk.calls


class Killed(BaseException):
    """The process is dead: from now on it changes nothing more."""


def killed(action: Callable[[], Any], at: int, *, exchange: bool = True) -> bool:
    """Let an action die at its `at`-th change, as by SIGKILL; False if it ended before.

    Nothing that would tidy up can change a file any more. What the system does when a process ends, closing
    its files and releasing their locks, happens on the way out.
    """

    def die() -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        if not exchange:
            patch.setattr(write, "_exchange", lambda *_: False)
        Disk(at, die, for_good=True).install(patch)
        try:
            action()
        except Killed:
            return True
    return False


def fails_to_look(
    action: Callable[[], Any], at: int, error: int, folder: Path
) -> tuple[Exception | None, int]:
    """Let the `at`-th look at what is in a folder fail; what the action raises, and how often it looks."""
    looks = 0

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal looks
            if isinstance(path, (str, os.PathLike)) and Path(path).is_relative_to(folder):
                looks += 1
                if looks == at:
                    raise OSError(error, os.strerror(error))
            return original(path, *arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("listdir", "scandir", "stat", "lstat", "open"):
            patch.setattr(os, name, watched(getattr(os, name)))
        try:
            action()
        except Exception as raised:
            return raised, looks
    return None, looks


def fails(action: Callable[[], Any], at: int, error: int, *, exchange: bool = True) -> Exception | None:
    """Let the `at`-th change of an action fail; what the action raises."""

    def fail() -> None:
        raise OSError(error, os.strerror(error))

    with pytest.MonkeyPatch.context() as patch:
        if not exchange:
            patch.setattr(write, "_exchange", lambda *_: False)
        Disk(at, fail).install(patch)
        try:
            action()
        except Exception as raised:
            return raised
    return None
