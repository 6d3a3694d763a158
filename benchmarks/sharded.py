"""A billion parameters in two processes: the memory of building, saving and loading, and the disk's speed.

    python benchmarks/sharded.py torch|jax [FOLDER] [DEPTH]

Two processes, each with a device of its own, build one model on the mesh data=2 in float32, save it together
into FOLDER and load it again. Of each process: the peak of host memory above what it had before, over the
bytes of its pieces. Of the disk: the bytes of the model by the time of `palm.save` and `palm.load`, over the
same bytes by the time of plain writes with fsync, and reads of 4 MiB, by both processes at once; and of
reads that keep what they read, as a model does, for which the system must find memory. These are taken in
turns; before a read the system is told to forget the files. Then the same of files that the system has in
memory (`cached`), beside reads that also take the CRC-32 (`checked`). Beside other work on the machine the
seconds of processor time say more: they are in the results too, which go to
benchmarks/results/sharded_BACKEND.json.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import palm
from palm.backends import wing
from palm.parity.recording.recording import environment
from palm.spec.sizes import describe

RESULTS = Path(__file__).parent / "results"
PROCESSES, ROUNDS, BLOCK = 2, 6, 1 << 22
TINY = palm.PaLMConfig(num_tokens=16, dim=8, depth=2, heads=2, dim_head=4).resolve("torch")
MESH = f"data={PROCESSES}"
COMPARED = (
    ("save", "plain write"),
    ("load", "plain read"),
    ("load", "kept read"),
    ("cached load", "cached read"),
    ("cached load", "checked read"),
)


class Process:
    """One of the processes: what it holds, and how long all of them take together."""

    def __init__(self, backend: str, folder: Path) -> None:
        self.wing: Any = wing(backend)
        self.options: dict[str, Any] = {"backend": backend, "mesh": MESH}
        self.wing.join()
        self.number, _ = self.wing.numbered()
        self.folder = folder
        self.seconds: dict[str, list[float]] = {}
        self.cpu_seconds: dict[str, list[float]] = {}
        self.peaks: dict[str, int] = {}
        # Imports what is imported then, and connects the processes.
        palm.save(palm.build(TINY, **self.options), folder / "tiny")
        palm.load(folder / "tiny", **self.options)
        gc.collect()
        self.base = memory("VmRSS")

    def timed(self, name: str, action: Callable[[], Any]) -> Any:
        """What an action gives. Writes down its seconds, until all processes have done it, and its peak."""
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", "ascii")
        self.wing.wait()
        start, cpu = time.perf_counter(), time.process_time()
        found = action()
        cpu = time.process_time() - cpu
        self.wing.wait()
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        self.cpu_seconds.setdefault(name, []).append(cpu)
        self.peaks[name] = max(self.peaks.get(name, 0), memory("VmHWM") - self.base)
        return found

    def own(self, model: Any) -> dict[str, tuple[int, int]]:
        """Bytes and CRC-32 of each piece that this process holds and writes."""
        pieces = self.wing.pieces(model)
        return {
            f"{p.name}@{p.start}": (p.array.nbytes, zlib.crc32(np.ascontiguousarray(p.array))) for p in pieces
        }


def memory(row: str) -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(row))


def plain_write(file: Path, size: int) -> None:
    block = os.urandom(BLOCK)
    with file.open("wb", buffering=0) as stream:
        for _ in range(size // BLOCK):
            stream.write(block)
        os.fsync(stream.fileno())


def plain_read(file: Path, *, checked: bool = False) -> None:
    block, checksum = bytearray(BLOCK), 0
    with file.open("rb", buffering=0) as stream:
        while stream.readinto(block):
            checksum = zlib.crc32(block, checksum) if checked else 0


def kept_read(file: Path) -> np.ndarray:
    content = np.empty(file.stat().st_size, np.uint8)
    with file.open("rb", buffering=0) as stream:
        for first in range(0, len(content), BLOCK):
            stream.readinto(content[first : first + BLOCK].data)
    return content


def forget(path: Path) -> None:
    """The system's page cache lets go of a file, or of all files of a folder."""
    for file in path.iterdir() if path.is_dir() else [path]:
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(backend: str, folder: Path, depth: int) -> dict[str, Any]:
    """What one process measures."""
    process = Process(backend, folder)
    config = palm.preset("small", dim=2048, depth=depth, heads=16, dim_head=128).resolve("torch")
    own_file, path = folder / f"plain-{process.number}", folder / "model"
    model = process.timed("build", lambda: palm.build(config, **process.options))
    written = process.own(model)
    held = sum(size for size, _ in written.values())
    for _ in range(ROUNDS):
        process.timed("plain write", lambda: plain_write(own_file, held))
        process.timed("save", lambda: palm.save(model, path, overwrite=True))
    model = None
    for _ in range(ROUNDS):
        forget(own_file)
        process.timed("plain read", lambda: plain_read(own_file))
        forget(own_file)
        process.timed("kept read", lambda: kept_read(own_file))
        if process.number == 0:
            forget(path)
        model = process.timed("load", lambda: palm.load(path, **process.options))
        same = process.own(model) == written
        model = None
        for file in (own_file, *path.iterdir()):
            plain_read(file)  # so that the system has them in memory
        process.timed("cached read", lambda: plain_read(own_file))
        process.timed("checked read", lambda: plain_read(own_file, checked=True))
        model = process.timed("cached load", lambda: palm.load(path, **process.options))
        model = None
    return {
        "parameters": describe(config).total,
        "own_bytes": held,
        "peak_over_own": {
            name: process.peaks[name] / held for name in ("build", "save", "load", "cached load")
        },
        "loaded_is_saved": same,
        "seconds": process.seconds,
        "cpu_seconds": process.cpu_seconds,
    }


def run(backend: str, folder: Path, depth: int) -> list[dict[str, Any]]:
    """What the processes measure, started as users start them."""
    script = [__file__, backend, str(folder), str(depth), "worker"]
    if backend == "torch":
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(PROCESSES)]
        subprocess.run([sys.executable, *launch, *script], check=True)
    else:
        where = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:29517", "JAX_NUM_PROCESSES": str(PROCESSES)}
        own = [{**os.environ, **where, "JAX_PROCESS_ID": str(number)} for number in range(PROCESSES)]
        children = [subprocess.Popen([sys.executable, *script], env=env) for env in own]
        assert [child.wait() for child in children] == [0] * PROCESSES
    return [json.loads((folder / f"{number}.json").read_text("utf-8")) for number in range(PROCESSES)]


def main() -> None:
    backend, *rest = sys.argv[1:]
    depth = int(rest[1]) if len(rest) > 1 else 17
    if rest[2:] == ["worker"]:
        found = measured(backend, Path(rest[0]), depth)
        number, _ = wing(backend).numbered()
        Path(rest[0], f"{number}.json").write_text(json.dumps(found), "utf-8")
        return
    folder = Path(tempfile.mkdtemp(dir=rest[0] if rest else None))
    try:
        found = run(backend, folder, depth)
    finally:
        shutil.rmtree(folder)
    size = sum(process["own_bytes"] for process in found)
    rates = {name: [size / 1e6 / seconds for seconds in taken] for name, taken in found[0]["seconds"].items()}
    shares = {
        f"{name} over {plain}": statistics.median(
            a / b for a, b in zip(rates[name], rates[plain], strict=True)
        )
        for name, plain in COMPARED
    }
    results = {
        "processes": found,
        "megabytes_per_second": rates,
        "share_of_the_disks_rate": shares,
    }
    print(json.dumps(results, indent=1))
    told = {"environment": environment(), "results": results}
    (RESULTS / f"sharded_{backend}.json").write_text(json.dumps(told, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
