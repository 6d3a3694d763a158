"""What a results file's raw times come to: values, ratios and shares of a comparison's sides.

A comparison is a group of sides as speed.py records them: each side's spec, its start, its runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from costs import decode_bytes, forward_flops, mfu, training_flops
from limits import best, rates_of, share
from timing import Spread, ratio, spread

from palm.config import PaLMConfig
from palm.training.hardware import peak_flops

Group = Mapping[str, Any]


def values(group: Group, name: str) -> list[float]:
    """What a side's runs measured: seconds, or bytes of its own in the memory case. Empty if it has none."""
    record = group["sides"].get(name)
    if record is None or not record["runs"]:
        return []
    if group["case"] == "memory":
        return [run["peak_bytes"] - record["start"]["before_bytes"] for run in record["runs"]]
    return [run["seconds"] for run in record["runs"]]


def rates(group: Group) -> dict[str, list[float]]:
    """Every rate of a comparison's limit sides, by call."""
    found: dict[str, list[float]] = {}
    for record in group["sides"].values():
        if record["spec"]["model"] == "limits":
            found |= rates_of(record["runs"])
    return found


def amount(spec: Mapping[str, Any]) -> tuple[str, float] | None:
    """The kind of limit that bounds a job, and how much of it the job must do; None for other jobs."""
    if spec["job"] not in ("training", "forward", "decode"):
        return None
    config, batch, length = PaLMConfig.from_dict(spec["config"]), spec["batch"], spec["length"]
    if spec["job"] == "decode":
        return "bandwidth", decode_bytes(config, spec["precision"], batch, length)
    flops = training_flops if spec["job"] == "training" else forward_flops
    return spec["precision"], flops(config, batch, length)


def share_of_limit(group: Group, name: str) -> Spread | None:
    """The part of the machine's limit that a side reaches, round by round."""
    seconds = values(group, name)
    found = amount(group["sides"][name]["spec"]) if seconds else None
    limit = best(rates(group), found[0]) if found else None
    return share(found[1], seconds, limit[1]) if found and limit else None


def utilisation(group: Group, name: str) -> Spread | None:
    """Model FLOPs utilisation of a training step; None where the maker's peak is not known."""
    seconds = values(group, name)
    if not seconds:
        return None
    spec, device = group["sides"][name]["spec"], group["sides"][name]["start"]["device"]
    peak = None if device == "cpu" else peak_flops(device, spec["precision"])
    if peak is None:
        return None
    config = PaLMConfig.from_dict(spec["config"])
    return spread([mfu(config, spec["batch"], spec["length"], second, peak) for second in seconds])


def over(group: Group, above: str, below: str) -> Spread | None:
    """One side's values over another's; None if either has none."""
    sides = values(group, above), values(group, below)
    return ratio(*sides) if all(sides) else None
