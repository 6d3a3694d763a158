"""One input in a bounded process: made of the seed, a target's name and a number; read, and judged."""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import shutil
import sys
import time
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from fuzz.mutations import change
from fuzz.readers import holds
from fuzz.targets import TARGETS, WRONG, Target

ALL = {**TARGETS, **WRONG}
# No input has a megabyte. What an input may take before it is a finding, and what it can take at most.
MOST_MEMORY, MEMORY = 256 << 20, 2 << 30
# Logs are written line by line, without a checksum.
UNSEALED = ".jsonl"


class Child:
    """Reads one input after the other in a folder of its own."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.good: dict[str, Any] = {}

    def begin(self, name: str) -> None:
        """Make the files of a target, import what reads them, and note what they say."""
        if name in self.good:
            return
        target, made = ALL[name], self.folder / name
        for package in target.needs:
            import_module(package)
        made.mkdir(parents=True)
        target.make(made)
        self.good[name] = (target.told or target.read)(self._copy(name))
        if name in TARGETS and not holds(target.read(self._copy(name)), self.good[name]):
            raise AssertionError(f"{name}: what is read is not what the files say")

    def input(self, name: str, number: int) -> dict[str, Any]:
        """Make an input and read it; its `verdict` is "refused", "read" or what is wrong."""
        self.begin(name)
        target, work = ALL[name], self._copy(name)
        rng = random.Random(f"{self.seed}/{name}/{number}")
        done, is_covered = self._change(target, work, rng)
        began, before = time.monotonic(), _peak_from_now()
        said = self._read(name, target, work, is_covered)
        took, grew = time.monotonic() - began, _memory("VmHWM") - before
        if grew > MOST_MEMORY:
            said = {"verdict": f"takes more than {MOST_MEMORY >> 20} MiB"}
        return {"target": name, "number": number, "done": done, "seconds": took, **said}

    def _copy(self, name: str) -> Path:
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        return shutil.copytree(self.folder / name, work)

    def _change(self, target: Target, work: Path, rng: random.Random) -> tuple[str, bool]:
        """What was done, and whether a checksum covers it."""
        done, file = change(rng, work)
        if target.seal is None or file.suffix == UNSEALED:
            return done, False
        if rng.random() < 0.5 or not file.is_file():
            return done, True
        # What cannot be parsed cannot be sealed either.
        with suppress(Exception):
            target.seal(file)
            return f"{done}, resealed", False
        return done, True

    def _read(self, name: str, target: Target, work: Path, is_covered: bool) -> dict[str, str]:
        try:
            read = target.read(work)
        except target.errors as error:
            return {"verdict": "refused", "error": str(error)[:300]}
        except BaseException as error:
            text = "".join(traceback.format_exception(error)[-12:])
            return {"verdict": f"raises {type(error).__name__}", "at": _place(error), "traceback": text}
        if target.told is None and not is_covered:  # nobody else knows what they say
            return {"verdict": "read"}
        try:
            told = self.good[name] if is_covered else target.told(work)
        except Exception as error:
            return {"verdict": "reads what others refuse", "error": f"{type(error).__name__}: {error}"[:300]}
        return {"verdict": "read" if holds(read, told) else "reads other values"}


def _place(error: BaseException) -> str:
    """The last line of palm's in a traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/palm/" in frame.filename]
    return f"{frames[-1].filename.rpartition('/palm/')[2]}:{frames[-1].lineno}" if frames else ""


def _memory(name: str) -> int:
    """Bytes that this process has; VmHWM: the most that it had. 0 where nobody tells."""
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))
    return 0


def _peak_from_now() -> int:
    """Forget what was the most, and say what there is."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def serve(seed: int, folder: Path) -> None:
    """Answer each line with one of JSON: a target that is to begin, or TARGET/NUMBER, an input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    faulthandler.enable()
    child = Child(folder, seed)
    for line in sys.stdin:
        name, _, number = line.strip().partition("/")
        if sys.platform == "linux":
            # Packages map far more than they use.
            most = _memory("VmSize") + MEMORY if number else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        said = child.input(name, int(number)) if number else child.begin(name)
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))
