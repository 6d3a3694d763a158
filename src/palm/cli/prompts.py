"""The prompts of `palm generate --prompts`: a file of text or JSON, a prompt a line, checked as a whole."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from palm.config import PaLMConfig
from palm.data.tokenizer import Tokenizer
from palm.errors import DataError, PalmError
from palm.fields import plain
from palm.files.objects import MOST_BYTES, MalformedError, parse_object
from palm.files.read import read_file
from palm.generation.prompts import encode_prompt
from palm.generation.rows import Generation

T = TypeVar("T")
STANDARD_INPUT = "-"
# What a line of the output says beside the fields of its prompt.
_TOLD = ("text", "ids", "finish", "logprobs")
_MOST_PROMPTS = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Prompts:
    """What each line of a file holds: its fields, one of which is the prompt. `name` is for messages."""

    name: str
    fields: list[dict[str, Any]]

    def encoded(self, tokenizer: Tokenizer | None, config: PaLMConfig, count: int) -> list[np.ndarray]:
        """The ids of each prompt, which `count` new tokens will follow.

        Raises `TokenError` and `DataError` that name the line.
        """
        return _each(
            self.name, lambda fields: encode_prompt(fields["prompt"], tokenizer, config, count), self.fields
        )


def read_prompts(file: str) -> Prompts:
    """The prompts of a file: of JSON if its name ends in `.jsonl`, or else of text.

    "-" is standard input, which holds JSON if it begins with a brace. Raises `DataError` for what cannot be
    read, and for the first line that is not what it must be.
    """
    if file == STANDARD_INPUT:
        name, content = "standard input", _standard_input()
    else:
        name, content = file, _content(file)
    content = content.removeprefix(_BYTE_ORDER_MARK)
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    if not 0 < len(lines) <= _MOST_PROMPTS:
        raise DataError(
            f"prompts must be from 1 to {_MOST_PROMPTS:,}, one a line; got {len(lines):,} in {name}. "
            f"{'Split the file.' if lines else 'Add one.'}"
        )
    is_json = content.startswith(b"{") if file == STANDARD_INPUT else file.lower().endswith(".jsonl")
    return Prompts(name, _each(name, _fields if is_json else _text, lines))


def line_of(fields: dict[str, Any], generation: Generation, *, logprobs: bool) -> dict[str, Any]:
    """What the output says of one prompt; no text where no tokenizer is known."""
    told = {"text": generation.decoded, "ids": generation.tokens.tolist(), "finish": generation.finish}
    return {
        **fields,
        **told,
        **({"logprobs": [*map(plain, generation.logprobs.tolist())]} if logprobs else {}),
    }


def _each(name: str, act: Callable[[Any], T], lines: Sequence[Any]) -> list[T]:
    """What `act` makes of each line. Raises the error that it raises, with the number of the line."""
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(act(line))
        except PalmError as error:
            raise type(error)(f"{name}, line {number}: {error}") from None
    return found


def _content(file: str) -> bytes:
    try:
        return read_file(file, MOST_BYTES)
    except OSError as error:
        raise DataError(
            f"prompts must be a readable file, or - for standard input; got {file}: {error.strerror}. "
            "Check the path."
        ) from None


def _standard_input() -> bytes:
    content = b"" if sys.stdin is None else sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise DataError(
            f"prompts must have at most {MOST_BYTES:,} bytes; got more on standard input. Pass fewer at once."
        )
    return content


def _text(line: bytes) -> dict[str, Any]:
    try:
        text = line.removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"a prompt must be UTF-8; got byte {line[error.start]} at {error.start}. Convert the file."
        ) from None
    if not text:
        raise DataError(
            "a prompt must have at least one character; got an empty line. Remove the line. A .jsonl file "
            'can have the prompt "\\n".'
        )
    return {"prompt": text}


def _fields(line: bytes) -> dict[str, Any]:
    try:
        fields = parse_object(line)
    except MalformedError as error:
        raise DataError(
            f'a line must be a JSON object, such as {{"prompt": "The "}}; {error}. Correct the line.'
        ) from None
    wrong = next(_wrong(fields), None)
    if wrong is not None:
        raise DataError(wrong)
    return fields


def _wrong(fields: dict[str, Any]) -> Iterator[str]:
    for name in _TOLD:
        if name in fields:
            yield f"a line must not have the field {name}, which the output has; got it. Rename it."
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) and not (isinstance(prompt, list) and all(map(_is_id, prompt))):
        got = f"{prompt!r:.80}" if "prompt" in fields else "no such field"
        yield f'"prompt" must be a text or a list of ids; got {got}. Correct the line.'


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
