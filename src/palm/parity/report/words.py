"""Words and short numbers that every renderer of a report uses."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from palm.files.names import visible
from palm.parity.finding import Finding, Nature, Outcome

# A sign and a CSS class for each outcome; no outcome is told by its colour alone.
OUTCOMES: dict[Outcome, tuple[str, str]] = {
    "agree": ("✓", "agree"),
    "differ by rounding more than expected": ("≈", "rounding"),
    "differ": ("✕", "differ"),
    "cannot tell": ("?", "unknown"),
}
# What a fault proves.
NATURES: dict[Nature | None, str] = {
    "function": "✕ different function",
    "rounding": "≈ more rounding than expected",
    "both not finite": "? neither is finite",
    "unproven": "? unproven",
    "too few numbers": "? too few numbers",
    None: "✕",
}
_BLOCK = re.compile(r"(?:grad:)?blocks\.(\d+)\.(.+)", re.DOTALL)


def block_and_row(name: str) -> tuple[int | None, str]:
    """(3, "attention.query") for `grad:blocks.3.attention.query`; None for a name outside the blocks."""
    match = _BLOCK.fullmatch(name)
    return (int(match[1]), match[2]) if match else (None, name.removeprefix("grad:"))


def short(value: float) -> str:
    """Three significant digits."""
    if not math.isfinite(value):
        return "∞" if value > 0 else str(value)
    if value == 0:
        return "0"
    return f"{value:#.3g}".rstrip(".") if 0.01 <= abs(value) < 999.5 else f"{value:.2e}"


def tiny(value: float) -> str:
    """A ratio in at most five characters."""
    if not math.isfinite(value) or value == 0:
        return short(value)
    if value < 999.5:
        return f"{value:.2f}" if value < 9.995 else f"{value:.0f}"
    return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")


def measured(finding: Finding, value: float) -> str:
    """One of a finding's numbers in short: a dash if it was not measured, nan if it is not finite."""
    return "—" if is_unmeasured(finding, value) else short(value)


def is_unmeasured(finding: Finding, value: float) -> bool:
    """Whether one of a finding's numbers is nan because it was not measured."""
    return math.isnan(value) and math.isfinite(finding.cross)


def fault_proof(finding: Finding) -> str:
    """What a finding's fault proves; ✓ if it has none."""
    return NATURES[finding.nature] if finding.fault else "✓"


def token_text(token: str) -> str:
    """A token with every character visible; spaces alone become ␣."""
    return "␣" * len(token) if token and not token.strip(" ") else visible(token)


def in_words(finding: Finding, label_a: str, label_b: str) -> str:
    """Everything known about a finding, line by line."""
    lines = [
        f"{finding.name}, {counted(finding.elements, 'number')}",
        f"ratio {measured(finding, finding.ratio)}",
        f"{label_a} error {measured(finding, finding.error_a)}",
        f"{label_b} error {measured(finding, finding.error_b)}",
        f"{label_a} − {label_b} {measured(finding, finding.cross)}",
        f"{label_a} bound {measured(finding, finding.bound_a)}",
        f"{label_b} bound {measured(finding, finding.bound_b)}",
    ]
    return "\n".join([*lines, f"{fault_proof(finding)}: {finding.fault}"] if finding.fault else lines)


def position_text(index: Sequence[int]) -> str:
    """ "position 7 of sequence 1", for an index into ids."""
    *sequence, position = index
    return f"position {position}" + (f" of sequence {sequence[0]}" if sequence else "")


def counted(count: int, noun: str) -> str:
    """ "1 tap", "1,280 taps"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
