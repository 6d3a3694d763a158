"""SVG, HTML and Markdown. Text of others is escaped, with hidden characters visible."""

from __future__ import annotations

import re
from collections.abc import Iterable

from markupsafe import Markup, escape

from palm.files.names import visible


def shown(value: object) -> Markup:
    """A value as markup: `Markup` as it is, everything else as text; lines of a title stay lines."""
    return value if isinstance(value, Markup) else escape(visible(str(value), keep="\n"))


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element. `class_` means `class`, an attribute that is None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{shown(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{''.join(map(shown, children))}</{name}>")


def plain(value: object) -> str:
    """A value as text in a line of Markdown, or in a cell of a table: nothing in it is markup."""
    # Within a word an underscore is one.
    return re.sub(r"[\\`*\[\]<>|~$&#!]|\b_|_\b|(?<=_)_|_(?=_)", r"\\\g<0>", visible(str(value)))


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown; the cells are text."""
    names = [*head]
    lines = [names, ["---"] * len(names), *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
