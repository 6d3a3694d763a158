"""Mutated files of every kind: `python tests/fuzz/run.py 60` says what raises, hangs, dies or reads wrongly.

    python tests/fuzz/run.py --seed 7 --input checkpoint/123      one input again, with its traceback

Each input is made of the seed, the target's name and its number. Child processes read them, with bounded
memory; one that dies, or twice takes longer than `LIMIT` seconds for an input, is replaced. A machine with
more work than processors has that much more time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
if __name__ == "__main__":  # pytest has it on its path
    sys.path.insert(0, str(TESTS))

from fuzz.child import Child  # noqa: E402
from fuzz.targets import TARGETS  # noqa: E402

FOUND = TESTS.parent / "build" / "fuzz"
SHARED_MEMORY = Path("/dev/shm")
# The same inputs each time, unless another seed is given.
SEED = 2204_02311
LIMIT, START = 5.0, 120.0
RIGHT = "refused", "read"


def available() -> list[str]:
    """The targets whose packages are installed."""
    return [name for name, target in TARGETS.items() if all(map(find_spec, target.needs))]


class Worker:
    """A child process with a folder of its own."""

    def __init__(self, folder: Path, seed: int, limit: float) -> None:
        self.folder, self.seed, self.limit = folder, seed, limit
        self._process: subprocess.Popen[str] | None = None

    def ask(self, name: str, number: int) -> dict[str, Any]:
        """Have one input read, and say what became of it."""
        self._process = self._process or self._start()
        try:
            self._answer(name, START)
            return self._answer(f"{name}/{number}", self.limit)
        except TimeoutError as error:
            verdict, took, _ = f"takes more than {error} s", self.limit, self.stop()
        except EOFError:
            verdict, took = f"dies with status {self.stop()}", 0.0
        told = {"target": name, "number": number, "done": "", "seconds": took, "verdict": verdict}
        return {**told, "stderr": (self.folder / "log").read_text("utf-8", "replace")[-4000:]}

    def _answer(self, line: str, limit: float) -> dict[str, Any]:
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n")
        patience = limit * max(1.0, os.getloadavg()[0] / os.cpu_count())
        if not select.select([self._process.stdout], [], [], patience)[0]:
            raise TimeoutError(f"{limit:g}")
        if answer := self._process.stdout.readline():
            return json.loads(answer)
        raise EOFError

    def _start(self) -> subprocess.Popen[str]:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        with (self.folder / "log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "fuzz.child", str(self.seed), str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )

    def stop(self) -> int | None:
        """End the child; it says where it was, if it has not ended by itself."""
        process, self._process = self._process, None
        if process is None:
            return None
        with suppress(BrokenPipeError):
            process.stdin.close()
        for end in (lambda: None, lambda: process.send_signal(signal.SIGABRT), process.kill):
            end()
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        process.stdout.close()
        return process.wait()


class Session:
    """Hands inputs to workers, and keeps what they find."""

    def __init__(self, seed: int, limit: float = LIMIT, keep: Path = FOUND) -> None:
        self.seed, self.limit, self.keep = seed, limit, keep
        self.findings: list[dict[str, Any]] = []
        self.verdicts: Counter[tuple[str, str]] = Counter()
        self.slowest: dict[str, float] = {}

    def run(self, names: list[str], seconds: float, inputs: int | None = None, workers: int = 1) -> None:
        """Inputs of the targets in turn, until the time is over or there were so many."""
        end = time.monotonic() + seconds
        numbers = iter(range(inputs)) if inputs else itertools.count()
        with (
            tempfile.TemporaryDirectory(
                prefix="palm-fuzz-", dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
            ) as folder,
            ThreadPoolExecutor(workers) as pool,
        ):
            folders = [Path(folder, str(i)) for i in range(workers)]
            list(pool.map(lambda own: self._work(own, names, numbers, end), folders))

    def _work(self, folder: Path, names: list[str], numbers: Iterator[int], end: float) -> None:
        worker = Worker(folder, self.seed, self.limit)
        try:
            for count in numbers:
                if time.monotonic() > end:
                    break
                asked = names[count % len(names)], count // len(names)
                said = worker.ask(*asked)
                if said["verdict"].endswith(" s"):  # of a busy machine; what hangs, hangs again
                    said = worker.ask(*asked)
                self._note(said, folder / "work")
        finally:
            worker.stop()

    def _note(self, said: dict[str, Any], files: Path) -> None:
        """Count it; of findings, keep the first of each kind with its files."""
        name, verdict = said["target"], said["verdict"]
        self.verdicts[name, verdict] += 1
        self.slowest[name] = max(self.slowest.get(name, 0.0), said["seconds"])
        if verdict in RIGHT:
            return
        is_new = all(
            (f["target"], f["verdict"], f.get("at")) != (name, verdict, said.get("at")) for f in self.findings
        )
        again = f"nox -s fuzz -- --seed {self.seed} --input {name}/{said['number']}"
        self.findings.append({**said, "again": again})
        if is_new:
            place = self.keep / f"{name}-{self.seed}-{said['number']}"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            with suppress(OSError):
                shutil.copytree(files, place / "files", symlinks=True)
            (place / "finding.json").write_text(json.dumps(self.findings[-1], indent=1) + "\n", "utf-8")
            print(f"{name}: {verdict} {said.get('at', '')} after {said['done']}\n  {again}", flush=True)

    def told(self, took: float) -> str:
        """A line for each target, and one for all."""
        lines = []
        for name, slowest in self.slowest.items():
            counts = {verdict: count for (of, verdict), count in self.verdicts.items() if of == name}
            lines.append(f"{name:22} {counts}, at most {slowest:.2f} s")
        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        cpu = sum(use.ru_utime + use.ru_stime for use in usage)
        count = self.verdicts.total()
        rates = f"{count / took:.0f} a second, {count / cpu:.0f} a second of CPU time"
        lines.append(f"{count:,} inputs in {took:.0f} s, {rates}; {len(self.findings)} findings")
        return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seconds", nargs="?", type=float, default=60)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--input", help="one input again: TARGET/NUMBER")
    parser.add_argument("--targets", nargs="+", default=available(), choices=TARGETS)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    if given.input:
        name, number = given.input.rsplit("/", 1)
        with tempfile.TemporaryDirectory() as folder:
            said = Child(Path(folder), given.seed).input(name, int(number))
        print(*(f"{key}: {value}" for key, value in said.items()), sep="\n")
        return said["verdict"] not in RIGHT
    session = Session(given.seed)
    began = time.monotonic()
    print(f"seed {given.seed}; targets: {', '.join(given.targets)}", flush=True)
    session.run(given.targets, given.seconds, workers=given.workers)
    print(session.told(time.monotonic() - began))
    return bool(session.findings)


if __name__ == "__main__":
    sys.exit(main())
