"""Do the paper's models train on meshes of TPU v4 chips? Asks the TPU's compiler; needs no TPU.

Compiles whole training steps by `palm.plan(…, topology=…)`. Each must fit a chip with room to spare, compile
in time, and gather no more than 1.3 times what data and tensor parallelism must. Prints a table; status 1 if
anything is otherwise. The results go to benchmarks/results/tpu_meshes.json.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import palm
from palm.parity.recording.recording import environment
from palm.spec.plan import Plan

RESULTS = Path(__file__).parent / "results" / "tpu_meshes.json"
GIB = 2**30
STEPS: tuple[dict[str, Any], ...] = (
    {"model": "palm-8b", "topology": "v4:4x4x4", "mesh": "data=16,model=4", "batch": 128},
    {"model": "palm-540b", "topology": "v4:8x16x16", "mesh": "data=128,model=16", "batch": 1024},
    # The mesh of each of the paper's two pods.
    {"model": "palm-540b", "topology": "v4:16x16x12", "mesh": "data=256,model=12", "batch": 1024},
    {"model": "palm-540b", "topology": "v4:16x16x16", "mesh": "pod=2,data=128,model=16", "batch": 2048},
)
SPARE, SECONDS, GATHERED = 5 * GIB, 900.0, 1.3


def problems(found: Plan) -> list[str]:
    """What is wrong with a step."""
    of = found.compiled
    assert of is not None
    wrong = []
    if of.memory - of.total < SPARE:
        wrong.append(f"takes {of.total / GIB:.2f} of {of.memory / GIB:.2f} GiB")
    if of.seconds > SECONDS:
        wrong.append(f"compiled in {of.seconds:.0f} s")
    if of.collectives and of.collectives["all-gather"].bytes > GATHERED * found.traffic.gathered:
        wrong.append("gathers more than it must")
    return wrong


def row(step: dict[str, Any], found: Plan) -> str:
    """A line of the table."""
    of = found.compiled
    assert of is not None
    received = {kind: one.bytes / GIB for kind, one in of.collectives.items()}
    columns = (
        of.sizes.get("arguments", 0) / GIB,
        of.sizes.get("temporary", 0) / GIB,
        of.total / GIB,
        found.footprint.total / GIB,
        received.get("all-gather", 0.0),
        found.traffic.gathered / GIB,
        received.get("reduce-scatter", 0.0) + received.get("all-reduce", 0.0),
        found.traffic.reduced / GIB,
    )
    name = f"{step['model']:<10}{step['mesh']:<25}{step['batch']:>6}{of.seconds:6.0f}"
    return name + "".join(f"{column:8.2f}" for column in columns)


def main() -> None:
    print(
        "GiB of each chip: arguments, temporary values, all of it, and that by the formulas;\n"
        "gathered in a step, and what must be; reduced in a step, and what must be\n\n"
        f"{'model':<10}{'mesh':<25}{'batch':>6}{'secs':>6}"
        f"{'args':>8}{'temp':>8}{'all':>8}{'plan':>8}{'gather':>8}{'must':>8}{'reduce':>8}{'must':>8}"
    )
    results, wrong = [], []
    for step in STEPS:
        found = palm.plan(**step)
        print(row(step, found), flush=True)
        wrong += [f"{step['model']} on {step['mesh']} {problem}" for problem in problems(found)]
        told = found.to_dict()
        results.append({**step, **{name: told[name] for name in ("bytes", "traffic", "compiled")}})
    for problem in wrong:
        print(f"WRONG: {problem}")
    machine = {**environment(), "libtpu": version("libtpu")}
    RESULTS.write_text(json.dumps({"environment": machine, "results": results}, indent=1) + "\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
