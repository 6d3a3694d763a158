"""How fast palm is: against the originals, other libraries, the other wing, and what the machine can do.

    python benchmarks/speed.py [CASE ...] [--lengths 512 1024] [--repeats 7] [--sides palm falcon] ...

CASE is training, forward, prefill, decode, memory, compile, limits, sizes (models for an accelerator), all
(the default; sizes only where a GPU is found), or report, which measures nothing and forms
docs/performance.md and docs/performance.svg anew from the results kept. Each side runs in a process of its
own and takes turns with the others. Results, with every raw time, go to
benchmarks/results/speed_MACHINE.json, case by case.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from speed_groups import CASES, groups
from speed_plot import draw
from speed_report import bar_table, groups_of, render, terminal_table
from speed_specs import Options
from timing import SideError, measure, started

from palm.parity.recording.recording import environment

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
# Memory is not timed, and a process is fresh only once.
ONE_RUN = ("memory",)


def parser() -> argparse.ArgumentParser:
    options = Options()
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default="all", help=f"{', '.join(CASES)}, all or report")
    for name in ("lengths", "memory_lengths", "batches"):
        default = list(getattr(options, name))
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, nargs="+", default=default, help=" ")
    for name in ("dim", "depth", "heads", "dim_head", "context", "gpu_batch", "megabytes"):
        default = getattr(options, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=" ")
    parser.add_argument("--attention", help="palm's attention path, if not its own choice")
    parser.add_argument("--sides", nargs="+", default=[], help="only sides whose names contain one of these")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of each comparison")
    parser.add_argument("--budget", type=float, default=900, help="seconds, after which three rounds do")
    parser.add_argument("--gpu-sizes", action="store_true", help="measure sizes too, whatever the device")
    parser.add_argument("--results", type=Path, help="where the results are kept")
    return parser


def device() -> str:
    """The device that the frameworks run on here, by its maker's name, or "cpu"."""
    for framework in ("torch", "jax"):
        spec = {"name": framework, "framework": framework, "model": "none", "job": "device"}
        try:
            with started(spec) as side:
                found = side.start()["device"]
        except SideError as error:
            sys.exit(f"{framework} does not start: {error}\n{error.words}")
        if found != "cpu":
            return found
    return "cpu"


def machine(device: str) -> str:
    """What this machine is called in results: its accelerator, or its processor and number of CPUs."""
    if device != "cpu":
        return device
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return f"{named[1] if named else platform.machine()}, {os.cpu_count()} CPUs"


def slug(machine: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", machine.lower()).strip("_")


def say(words: str) -> None:
    """Progress goes where no table is read from."""
    print(words, file=sys.stderr, flush=True)


def run(case: str, options: Options, asked: argparse.Namespace, result: dict[str, Any], path: Path) -> None:
    """Measure a case; keep each comparison as soon as it is done, in the place of an earlier of its name."""
    settings = {name: value for name, value in vars(asked).items() if name not in ("cases", "results")}
    kept = {group["name"]: group for group in result["cases"].get(case, {"groups": []})["groups"]}
    for group in groups(case, options):
        say(f"{case}: {group.name}")
        sides = measure(
            group.sides,
            repeats=1 if case in ONE_RUN else asked.repeats,
            budget=asked.budget,
            alone=group.alone,
            say=say,
        )
        kept[group.name] = {
            "case": case,
            "name": group.name,
            "environment": environment(),
            "settings": settings,
            "sides": sides,
        }
        result["cases"][case] = {"groups": list(kept.values())}
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, ensure_ascii=False) + "\n", encoding="utf-8")
        print(terminal_table(kept[group.name]) + "\n", flush=True)


def report() -> None:
    """Form docs/performance.md and its plot anew from every machine's results; the plot is a CPU's."""
    results = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("speed_*.json"))]
    page = DOCS / "performance.md"
    page.write_text(render(page.read_text(encoding="utf-8"), results), encoding="utf-8")
    for result in results:
        if result["device"] == "cpu" and {"training", "decode"} <= set(result["cases"]):
            draw(result, DOCS / "performance.svg")
    for result in results:
        print(f"{result['machine']}\n{bar_table(groups_of(result))}")


def main() -> None:
    asked = parser().parse_args()
    cases = [asked.cases] if isinstance(asked.cases, str) else asked.cases
    if unknown := set(cases) - {*CASES, "all", "report"}:
        sys.exit(f"CASE must be one of {', '.join(CASES)}, all, report; got {', '.join(sorted(unknown))}.")
    if cases == ["report"]:
        report()
        return
    found = device()
    chosen = [case for case in CASES if case in cases or "all" in cases]
    if "sizes" not in cases and found == "cpu":
        chosen = [case for case in chosen if case != "sizes"]
    if asked.gpu_sizes and "sizes" not in chosen:
        chosen.append("sizes")
    own = {name: value for name, value in vars(asked).items() if name in Options.__dataclass_fields__}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if found == "cpu" else None
    options = Options(**own, memory=memory)
    path = asked.results or RESULTS / f"speed_{slug(machine(found))}.json"
    # Cases that are not asked for keep what an earlier run found.
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cases": {}}
    result |= {"machine": machine(found), "device": found}
    for case in chosen:
        run(case, options, asked, result, path)
    print(bar_table(groups_of(result)))


if __name__ == "__main__":
    main()
