"""Elements and numbers as markup: the one place where text that is not ours gets escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable

from palm.parity.finding import Finding, Nature, Outcome

# A sign and a colour's class for each answer; no answer is told by its colour alone.
OUTCOMES: dict[Outcome, tuple[str, str]] = {
    "agree": ("✓", "agree"),
    "differ by rounding more than expected": ("≈", "rounding"),
    "differ": ("✕", "differ"),
    "cannot tell": ("?", "unknown"),
}
# What a fault proves.
NATURES: dict[Nature | None, str] = {
    "function": "✕ another function",
    "rounding": "≈ more rounding",
    "both not finite": "? neither is finite",
    "unproven": "? unproven",
    "too few numbers": "? too few numbers",
    None: "✕",
}


def tag(name: str, *children: str, **attributes: object) -> str:
    """An element; `children` are markup already, attributes are escaped here. `class_` means `class`."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{''.join(children)}</{name}>"


def text(value: object) -> str:
    """Text as markup."""
    return html.escape(str(value))


def breakable(name: str) -> str:
    """A long dotted name as markup; it may break after a dot."""
    return text(name).replace(".", ".<wbr>")


def short(value: float) -> str:
    """Three significant digits, for the eye."""
    if not math.isfinite(value):
        return "∞" if value > 0 else str(value)
    if value == 0:
        return "0"
    return f"{value:#.3g}".rstrip(".") if 0.01 <= abs(value) < 999.5 else f"{value:.2e}"


def tiny(value: float) -> str:
    """A ratio in at most five characters, for inside a cell."""
    if not math.isfinite(value) or value == 0:
        return short(value)
    if value < 999.5:
        return f"{value:.2f}" if value < 9.995 else f"{value:.0f}"
    return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")


def number(value: float, suffix: str = "") -> str:
    """`value` in short, with all its digits in the title."""
    return tag("span", text(short(value) + suffix), title=repr(value), class_="number")


def measured(finding: Finding, value: float) -> str:
    """One of a finding's numbers in short: a dash if there was none to measure, nan if it is not finite."""
    return "—" if is_unmeasured(finding, value) else short(value)


def is_unmeasured(finding: Finding, value: float) -> bool:
    """Whether one of a finding's numbers is nan because there was none to measure."""
    return math.isnan(value) and math.isfinite(finding.cross)


def fault_proof(finding: Finding) -> str:
    """What a finding's fault proves; ✓ if it has none."""
    return NATURES[finding.nature] if finding.fault else "✓"


def visible(content: str) -> str:
    """Text as markup in which no character hides: ⏎ for a newline, others by their code."""
    return "".join(text(c) if c.isprintable() else tag("i", escaped(c), class_="ctl") for c in content)


def escaped(character: str) -> str:
    """A character that would not be seen, as one that is."""
    code = ord(character)
    named = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
    return named.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def table(heads: Iterable[str], body: Iterable[str], class_: str) -> str:
    """A table of one row of heads and rows of its body."""
    return tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body), class_=class_)


def scrolled(inside: str, label: str) -> str:
    """What may be wider than the page."""
    return tag("div", inside, class_="scroll", tabindex=0, role="region", aria_label=label)


def in_words(finding: Finding, label_a: str, label_b: str) -> str:
    """Everything known about a finding, line by line with all digits, for a title."""
    lines = [
        f"{finding.name}, {finding.elements:,} number{'s' * (finding.elements != 1)}",
        f"ratio {finding.ratio!r}",
        f"{label_a} error {finding.error_a!r}",
        f"{label_b} error {finding.error_b!r}",
        f"{label_a} − {label_b} {finding.cross!r}",
        f"{label_a} bound {finding.bound_a!r}",
        f"{label_b} bound {finding.bound_b!r}",
    ]
    return "\n".join([*lines, f"{fault_proof(finding)}: {finding.fault}"] if finding.fault else lines)
