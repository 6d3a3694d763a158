"""Text as bytes and as characters."""

from __future__ import annotations

from palm.errors import DataError

# Stands for what is no character.
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def to_bytes(text: str | bytes) -> bytes:
    """A text in UTF-8; bytes as they are. Raises `DataError` for half a surrogate pair."""
    try:
        return text if isinstance(text, bytes) else text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"text must be Unicode; got a lone surrogate at character {error.start}. Pass bytes instead."
        ) from None


def to_str(text: str | bytes) -> str:
    """Bytes read as UTF-8; a text as it is. Raises `DataError` for what is no UTF-8."""
    try:
        return to_bytes(text).decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"text must be UTF-8 for this tokenizer; got byte {error.object[error.start]} at {error.start}. "
            "Convert the text, or work on bytes with no tokenizer."
        ) from None
