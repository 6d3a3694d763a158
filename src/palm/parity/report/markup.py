"""Elements and numbers as markup: the one place where text that is not ours gets escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable

from palm.parity.report.words import escaped, short


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


def number(value: float, suffix: str = "") -> str:
    """`value` in short, with all its digits in the title."""
    return tag("span", text(short(value) + suffix), title=repr(value), class_="number")


def visible(content: str) -> str:
    """Text as markup in which no character hides: ⏎ for a newline, others by their code."""
    return "".join(text(c) if c.isprintable() else tag("i", escaped(c), class_="ctl") for c in content)


def table(heads: Iterable[str], body: Iterable[str], class_: str) -> str:
    """A table of one row of heads and rows of its body."""
    return tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body), class_=class_)


def scrolled(inside: str, label: str) -> str:
    """What may be wider than the page."""
    return tag("div", inside, class_="scroll", tabindex=0, role="region", aria_label=label)
