"""How what comes from outside is shown: names of files, paths, tokens, words of a report."""

from __future__ import annotations


def visible(content: str, keep: str = "") -> str:
    """The text with every character visible, except those in `keep`.

    What would move a cursor, colour a terminal, turn the direction of writing or look like nothing is written
    out: \\x1b, \\u202e. A byte of a name that is no UTF-8 is written as the byte.
    """
    if content.isprintable():
        return content
    return "".join(c if c.isprintable() or c in keep else escaped(c) for c in content)


def escaped(character: str) -> str:
    """A character that cannot be seen, as characters that can."""
    code = ord(character)
    named = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte that it cannot decode
        code -= 0xDC00
    return named.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
