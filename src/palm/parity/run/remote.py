"""A program that runs in a process, and a Python, of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Collection
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import numpy as np

from palm import errors
from palm.errors import PalmError, ProbeError
from palm.files.temporary import temporary_folder
from palm.parity.programs.kinds import Framework
from palm.parity.programs.trace import operation_of
from palm.process import end, refusal, start_python, tell
from palm.tracing.operation import NOTHING, Change, Own, Run
from palm.tracing.program import Program
from palm.tracing.rounding import Rounding

_WORKER = "palm.parity.run.program_worker"
# What a Python without palm, or without what palm needs, says.
_LACKS = ("No module named", "ModuleNotFoundError")


@dataclass(frozen=True)
class ProgramFile:
    """The object `name` of a Python file. `python`: the interpreter that runs it; None is this one."""

    file: str
    name: str
    python: str | None = None
    framework: Framework | None = None

    @classmethod
    def of(cls, text: str, python: str | None = None) -> ProgramFile | None:
        """What `FILE.py:NAME` says; None of another text."""
        file, colon, name = text.rpartition(":")
        return cls(file, name, python) if colon and file.endswith(".py") and name else None


class RemoteProgram(Program):
    """A `ProgramFile` on the arrays of `inputs`. Its process ends with the `with` block."""

    def __init__(self, program: ProgramFile, inputs: tuple[np.ndarray, ...], label: str) -> None:
        self.label = label
        self._held = ExitStack()
        self._folder = self._held.enter_context(temporary_folder("program"))
        request = {**asdict(program), "label": label}
        (self._folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        np.savez(self._folder / "inputs.npz", *inputs)
        self._complaints = (self._folder / "stderr").open("w+", encoding="utf-8", errors="replace")
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": self._complaints}
        try:
            self._process = start_python(_WORKER, str(self._folder), python=program.python, **pipes)
        except OSError as error:
            self._held.close()
            raise ProbeError(
                f"python must be an interpreter; got {program.python}: {error.strerror}."
            ) from None

    def __enter__(self) -> RemoteProgram:
        """Wait for its first run. Raises its own `PalmError`, or `ProbeError` if it died."""
        try:
            self._wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        about = json.loads((self._folder / "about.json").read_text(encoding="utf-8"))
        self.operations = [operation_of(one, i) for i, one in enumerate(about["operations"])]
        self.outputs, self.dtype = about["outputs"], about["dtype"]
        self.first = self._answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end(self._process)
        with suppress(BrokenPipeError), self._process:  # closes its pipes
            pass
        self._complaints.close()
        self._held.close()

    def run(self, change: Change = NOTHING, values: Collection[int] = ()) -> Run:
        """Run it once more, over there."""
        put: dict[str, Any] = {str(i): x for i, x in change.values.items()}
        np.savez(self._folder / "change.npz", **put)
        scale, constants = dict(change.scale), dict(change.constants)
        only = None if change.only is None else sorted(change.only)
        self._ask({"scale": scale, "constants": constants, "values": sorted(values), "only": only})
        return self._answer()

    def settle(self, numbers: Collection[float]) -> None:
        """Tell it over there, and run it once more."""
        self._ask({"numbers": list(numbers)})
        self.first = self._answer()

    def own(self) -> Own:
        """It stays over there: `rounding` is what comes back of it."""
        raise NotImplementedError("a program in another process tells only the errors of its own run")

    def rounding(self) -> Rounding:
        """The errors of its values, measured over there."""
        self._ask({"rounding": True})
        with np.load(self._folder / "rounding.npz", allow_pickle=False) as held:
            return Rounding(self.dtype, *held["rounding"])

    def _ask(self, asked: dict[str, Any]) -> None:
        """Send a question, and wait until its answer is written."""
        tell(self._process, asked)
        self._wait()

    def _wait(self) -> None:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        if answer == "done":
            return
        if answer:
            raise ProbeError(f"{self.label} must run as it is asked to; it raised {json.loads(answer)}.")
        status = self._process.wait()
        self._complaints.seek(0)
        words = self._complaints.read().strip()
        told = refusal(status, words)
        if told is not None:
            raise getattr(errors, told[0], PalmError)(told[1])
        hint = " Install palm for this Python." if any(lack in words for lack in _LACKS) else ""
        raise ProbeError(f"{self.label} must run to its end; its process ended with {status}: {words}{hint}")

    def _answer(self) -> Run:
        with np.load(self._folder / "answer.npz", allow_pickle=False) as held:
            arrays: dict[str, Any] = {name: held[name] for name in held.files}
        kept, outputs = (_with_prefix(arrays, prefix) for prefix in ("value ", "output "))
        return Run(arrays["fingerprints"], {int(i): x for i, x in kept.items()}, outputs)


def _with_prefix(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}
