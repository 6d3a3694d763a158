"""The places where two programs part, read from a report for showing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from palm.tracing.operation import shown

# So many parameters without a counterpart are shown.
_MOST_PARAMETERS = 8


@dataclass(frozen=True)
class PartingPlace:
    """One difference: `headline` in words, and label, place and source line of each side."""

    headline: str
    sides: tuple[tuple[str, str, str], tuple[str, str, str]]


def places(report: Mapping[str, Any]) -> Iterator[PartingPlace]:
    """Where the two of a report part, then where one loses precision."""
    labels = [side["label"] for side in report["sides"]] if "sides" in report else [report["label"], "palm"]
    for found, how in (("divergences", "{} apart"), ("losses", "outputs off by {}")):
        for one in report.get(found, ()):
            cause = one["cause"] or "unknown cause"
            times = [f"{one['times']} times"] if one["times"] > 1 else []
            distance = float(one["distance"])
            far = [] if math.isnan(distance) else [how.format(f"{distance:.1e}")]
            sides = [_side(label, one[key]) for label, key in zip(labels, "ab", strict=True)]
            told = f" ({', '.join([*far, *times])})" if far or times else ""
            yield PartingPlace(f"{cause}{told}", (sides[0], sides[1]))


def precision_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How far each side's own precision takes its outputs from float64."""
    for one in report.get("precision", ()):
        error, need, ratio = (float(one[key]) for key in ("error", "need", "ratio"))
        yield (
            f"in {one['dtype']}",
            f"{one['label']} is off by {error:.1e}, the need is {need:.1e}: ratio {ratio:.2g}",
        )


def _side(label: str, site: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if site is None:
        return label, "computes nothing of its own there", ""
    if site["file"] is None:
        return label, site["op"], ""
    module = f" in {site['module']}" if site["module"] else ""
    called = "".join(f", called at {shown(file)}:{line}" for file, line in site["callers"][:1])
    return label, f"{site['op']} at {shown(site['file'])}:{site['line']}{module}{called}", site["source"]


def parameter_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Of the parameters of two programs: how many have a counterpart, then those that have none."""
    held = report.get("parameters", ())
    if not held:
        return
    alone = [one for one in held if not one["counterparts"]]
    yield "parameters", f"{len(held) - len(alone)} of {len(held)} are also on the other side"
    for one in alone[:_MOST_PARAMETERS]:
        near = "nothing is of that size"
        if one["nearest"] is not None:
            near = f"nearest is {one['nearest']}, {float(one['distance']):.1e} apart"
        yield "", f"not {one['name']} of {one['side']}: {near}"
    if len(alone) > _MOST_PARAMETERS:
        yield "", f"and {len(alone) - _MOST_PARAMETERS} more"
