"""JSON from a file that nobody vouches for: every size is bounded, and the time is linear in the bytes."""

from __future__ import annotations

import json
import math
import re
from typing import Any

# Far more than palm ever writes, and few enough to be read at once.
MOST_BYTES, MOST_KEYS, MOST_DEPTH, MOST_DIGITS = 1 << 26, 1 << 20, 64, 400
# A whole text, closed or not, so that brackets within it are passed over; or a bracket.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


class MalformedError(ValueError):
    """What a file of its kind cannot hold. Whoever reads the file turns it into an error of palm."""


def parse(content: bytes, *, finite: bool = True) -> Any:
    """The JSON value of `content`, which is UTF-8.

    Raises `MalformedError` for anything else, for a key twice in one object, for numbers that are not
    finite (unless they may be), and for what is larger than the bounds of this module.
    """
    if len(content) > MOST_BYTES:
        raise MalformedError(f"JSON must have at most {MOST_BYTES:,} bytes; got {len(content):,}")
    try:
        text = content.decode()
        _check_depth(text)
        return json.loads(
            text,
            object_pairs_hook=_Keys().unique,
            parse_int=_integer,
            parse_float=_real if finite else float,
            parse_constant=_constant if finite else float,
        )
    except MalformedError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise MalformedError(f"it must be valid JSON; {error or 'it is too large'}") from None


def parse_object(content: bytes, *, finite: bool = True) -> dict[str, Any]:
    """The same, if it is an object. Raises `MalformedError`."""
    value = parse(content, finite=finite)
    if not isinstance(value, dict):
        raise MalformedError(f"it must be a JSON object; got {type(value).__name__}")
    return value


def _check_depth(text: str) -> None:
    depth = 0
    for token in _TOKEN.finditer(text):
        if token[0] in "[{":
            depth += 1
            if depth > MOST_DEPTH:
                raise MalformedError(f"JSON must be at most {MOST_DEPTH} levels deep; it is deeper")
        elif token[0] in "]}":
            depth -= 1


class _Keys:
    """Counts the keys of one text."""

    def __init__(self) -> None:
        self._count = 0

    def unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self._count += len(pairs)
        if self._count > MOST_KEYS:
            raise MalformedError(f"JSON must have at most {MOST_KEYS:,} keys; it has more")
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                shown = name if name.isprintable() else repr(name)
                raise MalformedError(f"{shown:.80} must occur once; got it twice")
            found[name] = value
        return found


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise MalformedError(f"a number must have at most {MOST_DIGITS} digits; got {len(digits)}")
    return int(digits)


def _real(digits: str) -> float:
    if len(digits) > MOST_DIGITS:
        raise MalformedError(f"a number must have at most {MOST_DIGITS} digits; got {len(digits)}")
    return _finite(float(digits), digits)


def _constant(name: str) -> float:
    return _finite(float(name), name)


def _finite(value: float, shown: str) -> float:
    if not math.isfinite(value):
        raise MalformedError(f"a number must be finite; got {shown}")
    return value
