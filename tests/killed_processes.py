"""Runs of two processes, one of which is killed at a random moment, and what becomes of the other."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from palm.checkpoint.progress import load_progress
from palm.data.windows import python_documentation_text
from palm.training.run_folder import METRICS, SETTINGS, Run

PROCESSES = 2
# So long the others may take to end.
SOON = 60.0
SMALL = ["--dim", "16", "--depth", "2", "--heads", "2", "--dim-head", "8", "--validate-windows", "4"]
PACE = ["--batch", "4", "--length", "32", "--checkpoint-every", "2", "--validate-every", "50", "--keep", "2"]
# XLA gives up devices that wait for others for 40 seconds: a busy machine is slow.
XLA = "--xla_backend_optimization_level=0 --xla_cpu_collective_call_terminate_timeout_seconds=900"


@dataclass
class Killed:
    """How long the other process took to end after each kill, and how many kills were of which kind."""

    ended: list[float] = field(default_factory=list)
    saving: int = 0
    first: int = 0
    untold: int = 0  # ended by torchrun before they had come to train

    def __str__(self) -> str:
        return (
            f"{len(self.ended)} kills, {self.first} of the first process, {self.saving} amid a save; "
            f"the other one ended after at most {max(self.ended):.1f} s, {self.untold} without a message"
        )


@dataclass
class Started:
    """A run in two processes: the launcher's, if there is one, else theirs, and what each writes."""

    launched: list[subprocess.Popen[bytes]]
    logs: Path
    backend: str

    def told(self, rank: int) -> str:
        """What a process has written to its standard error."""
        if self.backend == "jax":
            return (self.logs / f"{rank}.txt").read_text(errors="replace")
        return "".join(file.read_text() for file in self.logs.glob(f"*/attempt_0/{rank}/stderr.log"))

    def pids(self) -> dict[int, int]:
        """The processes that are there, by their rank."""
        if self.backend == "jax":
            return {rank: process.pid for rank, process in enumerate(self.launched) if process.poll() is None}
        launcher = self.launched[0].pid
        found = {}
        try:
            for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
                entries = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                found |= {int(e[5:]): int(child) for e in entries if e.startswith(b"RANK=")}
        except OSError:  # they end meanwhile
            return {}
        return found

    def running(self) -> bool:
        return all(process.poll() is None for process in self.launched)

    def begun(self) -> bool:
        """Whether all have joined. torchrun ends who waits for one that never comes, JAX has no launcher."""
        if self.backend == "torch":
            return len(self.pids()) == PROCESSES
        return all("[Gloo] Rank" in self.told(rank) for rank in range(PROCESSES))

    def stop(self) -> None:
        for process in self.launched:
            process.kill()
            process.wait()


def start(backend: str, data: Path, out: Path, steps: int, *, behind: bool = False) -> Started:
    """Begin the run in the folder `out`, or go on with it; `behind`: it saves behind the steps."""
    logs = out.parent / f"logs-{time.monotonic_ns()}"
    logs.mkdir()
    new = ["--preset", "tiny", "--backend", backend, "--data", str(data), "--out", str(out), *SMALL, *PACE]
    given = ["--resume", str(out)] if (out / SETTINGS).exists() else [*new, "--steps", str(steps)]
    command = ["-m", "palm", "train", "--mesh", f"data={PROCESSES}", *given]
    command += ["--save-behind", str(behind)]
    own = {**os.environ, "OMP_NUM_THREADS": "1", "XLA_FLAGS": XLA, "CUDA_VISIBLE_DEVICES": ""}
    if backend == "torch":
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
        launcher += ["--redirects", "3", "--log-dir", str(logs)]
        return Started([_popen([*launcher, *command], own, logs / "launcher.txt")], logs, backend)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free.getsockname()[1]}"
    own |= {"JAX_NUM_PROCESSES": str(PROCESSES), "JAX_PLATFORMS": "cpu"}
    processes = [
        _popen([*command, "--distributed"], {**own, "JAX_PROCESS_ID": str(rank)}, logs / f"{rank}.txt")
        for rank in range(PROCESSES)
    ]
    return Started(processes, logs, backend)


def _popen(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=file, stderr=subprocess.STDOUT
        )


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true in that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def lines(out: Path) -> int:
    try:
        return (out / METRICS).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def is_saving(out: Path) -> bool:
    """Whether there is a checkpoint that is not whole yet."""
    return out.exists() and any(entry.name.startswith(".step-") for entry in out.iterdir())


def kill_one(run: Started, out: Path, rng: random.Random, seen: Killed) -> None:
    """Kill a random process some time into the start, or after some steps; see that the other one ends."""
    victim, other = rng.sample(range(PROCESSES), 2)
    before, early, amid = lines(out), rng.random() < 0.2, rng.random() < 0.5
    wanted = 10**9 if early else rng.randint(0, 10)
    assert until(lambda: run.begun() or not run.running(), 120), "the processes did not begin"
    until(lambda: lines(out) >= before + wanted or not run.running(), rng.uniform(0, 6) if early else 120)
    if amid and not early:
        until(lambda: is_saving(out) or not run.running(), 60)
    time.sleep(rng.uniform(0, 0.01 if amid else 0.1))
    assert run.running(), "the run ended before it was killed often enough"
    trains = lines(out) > before
    os.kill(run.pids()[victim], signal.SIGKILL)
    killed = time.monotonic()
    try:
        assert until(lambda: all(process.poll() is not None for process in run.launched), SOON), "it hangs"
    finally:
        run.stop()
    seen.ended.append(time.monotonic() - killed)
    seen.first += victim == 0
    seen.saving += is_saving(out)
    told = run.told(other)
    if run.backend == "jax":
        assert run.launched[other].returncode == 2, told
    assert run.launched[0].returncode != 0
    assert "Traceback" not in told, told
    messages = [line for line in told.splitlines() if line.startswith("palm: ")]
    assert len(messages) == 1 or (not trains and run.backend == "torch" and not messages), told
    seen.untold += not messages


def kill_often(backend: str, data: Path, out: Path, kills: int, steps: int) -> Killed:
    """Start a run of so many steps again and again, kill one of its processes each time, and end it.

    Half of the starts write the checkpoints behind the steps.
    """
    data.write_bytes(python_documentation_text()[:200_000])
    rng, seen = random.Random(backend), Killed()
    while len(seen.ended) < kills:
        kill_one(start(backend, data, out, steps, behind=rng.random() < 0.5), out, rng, seen)
        if (out / SETTINGS).exists():
            load_progress(Run(out).checkpoint("last"))  # whatever the moment, the newest one is whole
    finish(backend, data, out, steps)
    return seen


def finish(backend: str, data: Path, out: Path, steps: int) -> None:
    """Let the run end by itself."""
    run = start(backend, data, out, steps)
    try:
        codes = [process.wait(timeout=1800) for process in run.launched]
    finally:
        run.stop()
    assert codes == [0] * len(codes), [run.told(rank) for rank in range(PROCESSES)]


def assert_same_end(one: Path, other: Path, steps: int) -> None:
    """Both runs have the same log, weights and moments, to the last bit."""
    logs = [
        [json.dumps((entry["step"], entry["loss"], entry["grad_norm"])) for entry in Run(run).entries()]
        for run in (one, other)
    ]
    assert logs[0] == logs[1]
    assert len(logs[0]) == steps
    (_, weights, progress), (_, other_weights, other_progress) = (
        load_progress(Run(run).checkpoint(steps)) for run in (one, other)
    )
    for ours, theirs in ((weights, other_weights), (progress.moments, other_progress.moments)):
        assert ours.keys() == theirs.keys()
        assert all(array.tobytes() == theirs[name].tobytes() for name, array in ours.items())
    assert progress.fields == other_progress.fields
