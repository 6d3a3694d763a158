"""Run every part of gpu.sh in the order of worth, each in a process and within a time of its own.

    python benchmarks/gpu.py [--dry-run] [--out DIR] [--parts PART ...] [--seconds 1500]

parity          every attention path of both wings, in float32, TF32 and bfloat16, against the float64 referee
                and against the other wing
mfu             training steps of 150 M, 400 M and 1 B parameters, 2,048 tokens, bfloat16
decode          new tokens of 1 B parameters at batch 1, 8 and 64
peers           x-transformers and Hugging Face's Falcon beside both wings
profile_torch   which operations a training step spends its time in
profile_jax     the same, and what XLA says the step costs
grid            the parity tests: pytest tests/parity --platform gpu

Each part writes PART_DEVICE.json (the profiles: .txt) in DIR as soon as it knows something, and
summary_DEVICE.json holds the states of all. A part that fails or runs out of time does not stop the others;
the exit status is 1 if any did. `--dry-run` runs the same programs in small on a CPU; what needs a GPU's
kernels is listed as not here. DIR is $OUT, or benchmarks/results/gpu; of a dry run build/gpu.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from gpu_part import path_of

HERE = Path(__file__).parent
# Between the interrupt, on which a part writes what it has, and the kill.
GRACE = 15.0
# A part is not started with less.
LEAST = 20.0
TAIL = 4000


class Part(NamedTuple):
    """A program beside this one, its own arguments, and the seconds it may take."""

    command: tuple[str, ...]
    seconds: float


PARTS = {
    "parity": Part(("gpu_parity.py",), 400),
    "mfu": Part(("gpu_speed.py", "mfu"), 420),
    "decode": Part(("gpu_speed.py", "decode"), 270),
    "peers": Part(("gpu_speed.py", "peers"), 300),
    "profile_torch": Part(("gpu_profile_torch.py",), 120),
    "profile_jax": Part(("gpu_profile_jax.py",), 120),
    "grid": Part(("gpu_grid.py",), 600),
}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="small, on a CPU")
    parser.add_argument("--out", type=Path, help="where the files go")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="only these parts")
    parser.add_argument("--seconds", type=float, default=1500, help="of all parts together")
    return parser


def folder(asked: argparse.Namespace) -> Path:
    """Where the files go."""
    if asked.out:
        return asked.out
    kept = HERE.parent / "build" / "gpu" if asked.dry_run else HERE / "results" / "gpu"
    return Path(os.environ.get("OUT", kept))


def environment(dry_run: bool) -> dict[str, str]:
    """Of a part's process."""
    # One GPU is shared by both frameworks: JAX may not take most of its memory at once.
    own = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if dry_run:
        # Many programs are compiled and each runs once.
        own |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
        own |= {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return {**os.environ, **own}


def devices(env: dict[str, str]) -> dict[str, str]:
    """The device each framework runs on, by its maker's name or "cpu"; or the error it met."""
    asked = {
        "torch": "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu')",
        "jax": "import jax; d = jax.devices()[0]; print('cpu' if d.platform == 'cpu' else d.device_kind)",
    }
    found = {}
    for framework, code in asked.items():
        result = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
        )
        told = (result.stdout if result.returncode == 0 else result.stderr).strip().splitlines()
        found[framework] = told[-1] if result.returncode == 0 else f"error: {told[-1] if told else 'none'}"
    return found


def run(part: Part, arguments: Sequence[str], env: dict[str, str], seconds: float) -> dict[str, Any]:
    """Run a part and pass on what it prints. Gives its `state`, `seconds` and the end of its `output`."""
    began, lines = time.monotonic(), []

    def pass_on(stream: IO[str]) -> None:
        for line in stream:
            print(line, end="", flush=True)
            lines.append(line)

    command = [sys.executable, str(HERE / part.command[0]), *part.command[1:], *arguments]
    how = {"text": True, "errors": "replace", "start_new_session": True}
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **how
    ) as process:
        reader = threading.Thread(target=pass_on, args=(process.stdout,))
        reader.start()
        try:
            is_late = not _ends(process, seconds)
            if is_late:
                process.send_signal(signal.SIGINT)
                _ends(process, GRACE)
        finally:
            with suppress(ProcessLookupError):  # what it started does not outlive it
                os.killpg(process.pid, signal.SIGKILL)
            reader.join()
    state = "out of time" if is_late else "failed" if process.returncode else "done"
    took = round(time.monotonic() - began, 1)
    return {"state": state, "exit": process.returncode, "seconds": took, "output": "".join(lines)[-TAIL:]}


def _ends(process: subprocess.Popen[str], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def table(device: str, found: dict[str, str], states: dict[str, dict[str, Any]], out: Path) -> str:
    """What each part came to, and the lines that it says of itself."""
    lines = [f"\n=== {device}: " + ", ".join(f"{name} on {kind}" for name, kind in found.items())]
    for name, state in states.items():
        lines.append(f"{name:<14} {state['state']:<12} {state['seconds']:6.0f} s")
        path = path_of(out, name, device)
        if path.exists():
            lines += [f"    {line}" for line in json.loads(path.read_text(encoding="utf-8"))["lines"]]
    return "\n".join(lines)


def main() -> None:
    # So that whoever ends this process ends the part that runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    asked = parser().parse_args()
    ends = time.monotonic() + asked.seconds
    env, out = environment(asked.dry_run), folder(asked)
    found = devices(env)
    kinds = [kind for kind in found.values() if kind != "cpu" and not kind.startswith("error")]
    if not kinds and not asked.dry_run:
        sys.exit(f"one of the frameworks must find an accelerator; got {found}. Use --dry-run on a CPU.")
    device = kinds[0] if kinds else "cpu"
    # On a GPU both must have found it; what one of them can do is measured all the same.
    is_well = all(kind == "cpu" if asked.dry_run else kind in kinds for kind in found.values())
    out.mkdir(parents=True, exist_ok=True)
    arguments = ["--out", str(out), "--device", device, *(["--dry-run"] if asked.dry_run else [])]
    states: dict[str, dict[str, Any]] = {}
    for name in asked.parts:
        left = ends - time.monotonic()
        print(f"=== {name}, {left:.0f} s left", flush=True)
        if left < LEAST:
            states[name] = {"state": "no time left", "exit": None, "seconds": 0.0, "output": ""}
        else:
            states[name] = run(PARTS[name], arguments, env, min(left, PARTS[name].seconds))
        summary = {"device": device, "devices": found, "dry_run": asked.dry_run, "parts": states}
        path_of(out, "summary", device).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(table(device, found, states, out))
    if not is_well:
        print(f"each framework must run on the accelerator; got {found}.")
    sys.exit(not is_well or any(state["state"] != "done" for state in states.values()))


if __name__ == "__main__":
    main()
