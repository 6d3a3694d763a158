"""Mutated files of every kind: `python tests/fuzz/run.py 60` says what raises, hangs and dies in 60 seconds.

    python tests/fuzz/run.py --seed 7 --input checkpoint/123      one input again, with its traceback

Each input is made of the seed, the target's name and its number. A child process reads them, with bounded
memory; the parent restarts it after a crash, and after an input that took longer than `LIMIT` seconds.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
if __name__ == "__main__":  # pytest has it on its path
    sys.path.insert(0, str(TESTS))

import numpy as np  # noqa: E402
from fuzz.mutations import mutate  # noqa: E402
from fuzz.targets import TARGETS, UNSEALED, WRONG, Target  # noqa: E402

FOUND = TESTS.parent / "build" / "fuzz"
LIMIT = 5.0
START = 120.0
MEMORY = 3 << 30
ALL = {**TARGETS, **WRONG}


def available() -> list[str]:
    """The targets whose packages are installed."""
    return [name for name, target in TARGETS.items() if all(map(find_spec, target.needs))]


def digest(value: Any) -> str:
    """Of all bits of arrays, also those within what is read."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, dict):
        return str({name: digest(part) for name, part in value.items()})
    if isinstance(value, list | tuple):
        return str([digest(part) for part in value])
    return (
        str({name: digest(part) for name, part in vars(value).items()}) if _has_arrays(value) else repr(value)
    )


def _has_arrays(value: Any) -> bool:
    return any(isinstance(part, dict) for part in getattr(value, "__dict__", {}).values())


class Child:
    """Reads one input after the other, in a folder of its own."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.good: dict[str, str] = {}

    def input(self, name: str, number: int) -> dict[str, Any]:
        """Make an input and read it; its `verdict` is "refused", "read" or what is wrong."""
        target, work = ALL[name], self.folder / "work"
        if name not in self.good:
            self.good[name] = self._good(name, target)
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(self.folder / name, work)
        rng = random.Random(f"{self.seed}/{name}/{number}")
        done, is_covered = self._change(target, work, rng)
        said = {"target": name, "number": number, "done": done}
        try:
            read = digest(target.read(work))
        except target.errors as error:
            return {**said, "verdict": "refused", "error": str(error)[:300]}
        except BaseException as error:
            text = "".join(traceback.format_exception(error)[-12:])
            return {
                **said,
                "verdict": f"raises {type(error).__name__}",
                "at": _place(error),
                "traceback": text,
            }
        is_other = is_covered and read != self.good[name]
        return {**said, "verdict": "loads other values" if is_other else "read"}

    def _good(self, name: str, target: Target) -> str:
        """Make the files, and read them where all inputs are read, for paths are in what is read."""
        made, work = self.folder / name, self.folder / "work"
        made.mkdir(parents=True)
        target.make(made)
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(made, work)
        return "" if target.seal is None else digest(target.read(work))

    def _change(self, target: Target, work: Path, rng: random.Random) -> tuple[str, bool]:
        """What was done, and whether a checksum covers it."""
        file = rng.choice(sorted(path for path in work.rglob("*") if path.is_file()))
        content = file.read_bytes()
        done, changed = mutate(rng, file.name, content)
        file.write_bytes(changed)
        done = f"{done} of {file.relative_to(work)}"
        if target.seal is None or file.suffix in UNSEALED:
            return done, False
        if rng.random() < 0.5:
            return done, changed != content
        # What cannot be parsed cannot be sealed either.
        with suppress(Exception):
            target.seal(work, file)
            return f"{done}, resealed", False
        return done, changed != content


def _place(error: BaseException) -> str:
    """The last line of palm's in a traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/palm/" in frame.filename]
    return f"{frames[-1].filename.rpartition('/palm/')[2]}:{frames[-1].lineno}" if frames else ""


def serve(seed: int, folder: Path) -> None:
    """Answer each line, a target and a number, with one of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    faulthandler.enable()
    child = Child(folder, seed)
    held = 0
    if _is_linux():
        held = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    for line in sys.stdin:
        name, number = line.rsplit("/", 1)
        for package in ALL[name].needs:
            if package not in sys.modules:
                __import__(package)
                held += 4 << 30
        if _is_linux():
            resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))
        print(json.dumps(child.input(name, int(number))), file=answers, flush=True)


def _is_linux() -> bool:
    return sys.platform == "linux"


class Session:
    """A parent that hands inputs to its child, and keeps what they find."""

    def __init__(self, seed: int, limit: float = LIMIT, keep: Path = FOUND) -> None:
        self.seed, self.limit, self.keep = seed, limit, keep
        self.findings: list[dict[str, Any]] = []
        self.verdicts: Counter[str] = Counter()
        self._process: subprocess.Popen[str] | None = None
        self._began: set[str] = set()

    def run(self, names: list[str], seconds: float, inputs: int = 1 << 60) -> None:
        """Inputs of the targets in turn, until the time is over or there were so many."""
        end = time.monotonic() + seconds
        with tempfile.TemporaryDirectory(prefix="palm-fuzz-") as folder:
            self.folder = Path(folder)
            try:
                for count in range(inputs):
                    if time.monotonic() > end:
                        break
                    self.ask(names[count % len(names)], count // len(names))
            finally:
                self._stop()

    def ask(self, name: str, number: int) -> None:
        """Have one input read, and judge what became of it."""
        process = self._process = self._process or self._start()
        said: dict[str, Any] = {"target": name, "number": number, "done": ""}
        # The first one of a target also makes its files and imports its packages.
        limit = self.limit if name in self._began or name in WRONG else START
        self._began.add(name)
        try:
            process.stdin.write(f"{name}/{number}\n")
            process.stdin.flush()
            is_there = select.select([process.stdout], [], [], limit)[0]
            line = process.stdout.readline() if is_there else ""
        except BrokenPipeError:
            is_there, line = [True], ""
        if line:
            said = json.loads(line)
        else:
            code = self._stop()
            said |= {"verdict": f"dies with status {code}" if is_there else f"takes more than {limit:g} s"}
        self.verdicts[said["verdict"]] += 1
        if said["verdict"] not in ("refused", "read"):
            self._found(said)

    def _start(self) -> subprocess.Popen[str]:
        self._began.clear()
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the child
        shutil.rmtree(self.folder, ignore_errors=True)
        return subprocess.Popen(
            [sys.executable, __file__, "--serve", str(self.folder), "--seed", str(self.seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def _stop(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.kill()
        for stream in (process.stdin, process.stdout, self.log):
            with suppress(OSError):
                stream.close()
        return process.wait()

    def _found(self, said: dict[str, Any]) -> None:
        """Keep the first of each kind with its files, and the place of the others."""
        kind = (said["target"], said["verdict"], said.get("at"))
        is_new = all((f["target"], f["verdict"], f.get("at")) != kind for f in self.findings)
        again = f"nox -s fuzz -- --seed {self.seed} --input {said['target']}/{said['number']}"
        self.findings.append({**said, "again": again})
        if is_new:
            place = self.keep / f"{said['target']}-{self.seed}-{said['number']}"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            with suppress(OSError):
                shutil.copytree(self.folder / "work", place / "files")
            (place / "finding.json").write_text(json.dumps(self.findings[-1], indent=1) + "\n", "utf-8")
            print(f"{said['target']}: {said['verdict']} {said.get('at', '')} after {said['done']}\n  {again}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seconds", nargs="?", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--input", help="one input again: TARGET/NUMBER")
    parser.add_argument("--targets", nargs="+", default=available(), choices=TARGETS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.seed, given.serve)
        return 0
    session = Session(given.seed)
    began = time.monotonic()
    if given.input:
        name, number = given.input.rsplit("/", 1)
        with tempfile.TemporaryDirectory() as folder:
            said = Child(Path(folder), given.seed).input(name, int(number))
        print(*(f"{key}: {value}" for key, value in said.items()), sep="\n")
        return said["verdict"] not in ("refused", "read")
    print(f"seed {given.seed}; targets: {', '.join(given.targets)}", flush=True)
    session.run(given.targets, given.seconds)
    count, took = session.verdicts.total(), time.monotonic() - began
    print(f"{count:,} inputs in {took:.0f} s, {count / took:.0f} a second: {dict(session.verdicts)}")
    if session.findings:
        print(f"{len(session.findings)} findings; of each kind the first is in {FOUND}")
    return bool(session.findings)


if __name__ == "__main__":
    sys.exit(main())
