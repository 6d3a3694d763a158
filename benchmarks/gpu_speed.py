"""The speed parts of gpu.sh: `mfu`, `decode` or `peers`.

Each side runs in a process of its own; every raw time is kept. Utilisation is of the maker's peak where the
card is known by its name, or else of the best matrix product measured here; the share of the bandwidth is of
the best reading measured here. A side that fails makes the part fail; one that is left out does not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from costs import mfu
from gpu_groups import PARTS, TINY, Scale
from gpu_part import Results, parser
from limits import best
from measures import Group, over, rates, share_of_limit, values
from speed import say
from timing import measure, spread

from palm.config import PaLMConfig
from palm.training.hardware import peak_flops

# Seconds of a comparison after which three rounds do.
BUDGET = 60.0


def peak(device: str, limits: Mapping[str, Any]) -> tuple[float, str] | None:
    """bfloat16's FLOP/s at best, and whose figure that is."""
    named = None if device == "cpu" else peak_flops(device, "bfloat16")
    if named is not None:
        return named, "the maker's peak"
    found = best(limits, "bfloat16")
    return (spread(found[1]).median, "the best product measured") if found else None


def lines(group: Group, limits: Mapping[str, Any]) -> Iterator[str]:
    """A comparison in words, a line for each side."""
    yield f"{group['name']}:"
    for name, side in group["sides"].items():
        if side["spec"]["model"] == "limits":
            continue
        measured = values(group, name)
        if measured:
            words = (_step if group["case"] == "sizes" else _token)(group, name, limits)
            yield f"  {name:<26} {words}{_times(group, name)}"
        else:
            yield f"  {name:<26} {_why(side)}"
    yield from (
        f"  {call}: {spread(found).median:.3g} a second"
        for call, found in (rates(group).items() if group["case"] == "limits" else ())
    )


def _why(side: Mapping[str, Any]) -> str:
    return (
        f"left out: {side['left_out']}" if "left_out" in side else f"FAILED: {side.get('failed', 'no run')}"
    )


def _step(group: Group, name: str, limits: Mapping[str, Any]) -> str:
    spec, seconds = group["sides"][name]["spec"], spread(values(group, name)).median
    config, batch, length = PaLMConfig.from_dict(spec["config"]), spec["batch"], spec["length"]
    found = peak(group["sides"][name]["start"]["device"], limits)
    share = f", MFU {mfu(config, batch, length, seconds, found[0]):.1%} of {found[1]}" if found else ""
    return f"{seconds * 1e3:9.2f} ms a step, {batch * length / seconds:11,.0f} tokens/s{share}"


def _token(group: Group, name: str, limits: Mapping[str, Any]) -> str:
    seconds, batch = spread(values(group, name)).median, group["sides"][name]["spec"]["batch"]
    part = share_of_limit(group, name)
    share = f", {part.median:.0%} of the bandwidth" if part else ""
    return f"{seconds * 1e3:9.3f} ms a token, {batch / seconds:9,.0f} tokens/s{share}"


def _times(group: Group, name: str) -> str:
    against = group["sides"][name]["spec"].get("against")
    times = over(group, name, against) if against in group["sides"] else None
    return f", {times.median:.2f} × {against}" if times else ""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("part", choices=PARTS)
    asked = arguments.parse_args()
    results, scale = Results(asked.part, asked), TINY if asked.dry_run else Scale()
    groups: list[dict[str, Any]] = []
    limits: dict[str, list[float]] = {}
    for group in PARTS[asked.part](scale):
        sides = measure(group.sides, repeats=scale.repeats, budget=BUDGET, alone=group.alone, say=say)
        groups.append({"case": group.case, "name": group.name, "sides": sides})
        limits |= rates(groups[-1])
        results.keep(groups=groups)
        for line in lines(groups[-1], limits):
            results.say(line)
    sys.exit(any("failed" in side for group in groups for side in group["sides"].values()))


if __name__ == "__main__":
    main()
