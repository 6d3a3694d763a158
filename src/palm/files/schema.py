"""What a JSON value must be, said once for each kind of file, and checked in one place.

    check(value, Record({"step": NATURAL, "recipe": OBJECT}, optional={"val_loss": NUMBER}))

`check` raises `MalformedError`, which names the place in the value, what must be there, and what is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from palm.files.objects import MalformedError, parse_object

_HEXADECIMAL = re.compile("[0-9a-f]{64}")
_LONGEST_NAME = 255


class Kind(Protocol):
    """What a value can be: a leaf, a list, a mapping or a record."""

    def check(self, value: Any, at: str) -> None:
        """Raise `MalformedError` unless `value`, which is found `at` this place, is of the kind."""


def check(value: Any, kind: Kind) -> None:
    """Raise `MalformedError` unless the value is of that kind."""
    kind.check(value, "")


def complete_lines(content: bytes, kind: Kind) -> Iterator[dict[str, Any]]:
    """The lines of a log that are JSON objects of that kind; not those that a power cut tore, or an edit."""
    for line in content.split(b"\n")[:-1]:
        with suppress(MalformedError):
            entry = parse_object(line)
            check(entry, kind)
            yield entry


def _refuse(at: str, words: str, value: Any) -> MalformedError:
    """The error for a value; `!r` also keeps control characters off the terminal."""
    return MalformedError(f"{at or 'it'} must be {words}; got {value!r:.80}")


@dataclass(frozen=True)
class Leaf:
    """A value without parts, `words` says which."""

    words: str
    fits: Callable[[Any], bool]

    def check(self, value: Any, at: str) -> None:
        """Raise `MalformedError` unless it fits."""
        if not self.fits(value):
            raise _refuse(at, self.words, value)


@dataclass(frozen=True)
class Optional:
    """A value of the kind, or null."""

    kind: Kind

    def check(self, value: Any, at: str) -> None:
        """Raise `MalformedError` unless it is null or fits."""
        if value is not None:
            self.kind.check(value, at)


@dataclass(frozen=True)
class Items:
    """A list, each item of one kind."""

    kind: Kind

    def check(self, value: Any, at: str) -> None:
        """Raise `MalformedError` unless it is a list of such items."""
        if not isinstance(value, list):
            raise _refuse(at, "a list", value)
        for index, item in enumerate(value):
            self.kind.check(item, f"{at}[{index}]")


@dataclass(frozen=True)
class ByName:
    """An object whose keys are free: each is of the kind `name`, each value of the kind `kind`."""

    name: Kind
    kind: Kind

    def check(self, value: Any, at: str) -> None:
        """Raise `MalformedError` unless it is an object of such keys and values."""
        if not isinstance(value, dict):
            raise _refuse(at, "an object", value)
        for name, item in value.items():
            self.name.check(name, f"a name in {at or 'it'}")
            self.kind.check(item, f"{at}.{name}".lstrip("."))


@dataclass(frozen=True)
class Record:
    """An object that has these keys, and may have those of `optional`, and others, of the kind `others`."""

    needed: Mapping[str, Kind]
    optional: Mapping[str, Kind] = field(default_factory=dict)
    others: Kind | None = None

    def check(self, value: Any, at: str) -> None:
        """Raise `MalformedError` unless it is an object with these keys and values."""
        if not isinstance(value, dict):
            raise _refuse(at, "an object", value)
        missing = [name for name in self.needed if name not in value]
        if missing:
            raise MalformedError(f"{at or 'it'} must name {', '.join(missing)}; it does not")
        known = {**self.needed, **self.optional}
        for name, item in value.items():
            kind = known.get(name, self.others)
            if kind is not None:
                kind.check(item, f"{at}.{name}".lstrip("."))


def one_of(*choices: Any) -> Leaf:
    """One of these texts."""
    words = ", ".join(map(str, choices))
    return Leaf(f"one of {words}", lambda value: isinstance(value, str) and value in choices)


def whole(least: int, most: int) -> Leaf:
    """A whole number in this range, both ends included."""
    return Leaf(
        f"a whole number from {least} to {most}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most,
    )


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_file_name(value: Any) -> bool:
    return (
        _is_printable(value)
        and value not in ("", ".", "..")
        and not {"/", "\\"} & set(value)
        and len(value.encode()) <= _LONGEST_NAME
    )


def _is_unicode(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_printable(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


TEXT = Leaf("a text", lambda value: isinstance(value, str))
# The names of files may have bytes that are no UTF-8; JSON has them as halves of characters.
UNICODE = Leaf("a text of whole characters", _is_unicode)
# No control characters, and nothing that no UTF-8 can hold.
PRINTABLE = Leaf("a text that can be printed", _is_printable)
ABSENT = Leaf("left out", lambda value: False)
FLAG = Leaf("true or false", lambda value: isinstance(value, bool))
NUMBER = Leaf("a finite number", _is_finite)
NATURAL = whole(0, 2**63 - 1)
OBJECT = Leaf("an object", lambda value: isinstance(value, dict))
SHA256 = Leaf(
    "a SHA-256 in hexadecimal digits",
    lambda value: isinstance(value, str) and _HEXADECIMAL.fullmatch(value) is not None,
)
HEXADECIMAL = Leaf(
    "hexadecimal digits", lambda value: isinstance(value, str) and not value.strip("0123456789abcdef")
)
# A file of the same folder: nothing that leads out of it, and nothing that a system would misread.
FILE_NAME = Leaf("the name of a file, without a separator and printable", _is_file_name)
