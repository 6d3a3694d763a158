"""Elements of SVG and HTML as markup. Text of others is escaped, with hidden characters visible."""

from __future__ import annotations

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
