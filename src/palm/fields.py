"""Checks that every frozen dataclass of settings makes of its fields, and their way back from JSON."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import operator
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from palm.errors import ConfigError

T = TypeVar("T")
# What other libraries call these fields.
_SYNONYMS = {
    "lr": "learning_rate",
    "n_layers": "depth",
    "num_layers": "depth",
    "n_layer": "depth",
    "num_hidden_layers": "depth",
    "d_model": "dim",
    "hidden_size": "dim",
    "n_embd": "dim",
    "vocab_size": "num_tokens",
    "n_heads": "heads",
    "num_heads": "heads",
    "n_head": "heads",
    "num_attention_heads": "heads",
    "head_dim": "dim_head",
    "rope_base": "rope_theta",
    "rms_norm_eps": "norm_eps",
    "batch_size": "batch",
    "seq_len": "length",
    "seq_length": "length",
    "context": "length",
    "block_size": "length",
    "max_steps": "steps",
    "num_steps": "steps",
    "warmup_steps": "warmup",
    "grad_clip": "clip",
    "gradient_accumulation_steps": "accumulate",
    "dtype": "precision",
}


def integer(name: str, value: Any, *, least: int, below: float = 2**63) -> int:
    """`value` as an int. Raises `ConfigError` unless it is a whole number of at least `least`.

    It must be below 2⁶³, which no array has as many elements as, and no file as many bytes; or `below`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise ConfigError(
            f"{name} must be a whole number of at least {least}; got {name}={value!r}. Use an int."
        )
    if number >= below:
        raise ConfigError(
            f"{name} must be a whole number below 2**63; got one of {number.bit_length()} bits. "
            "Use a smaller one."
        )
    return number


def real(name: str, value: Any, *, least: float, below: float = math.inf, strict: bool = False) -> float:
    """`value` as a float. Raises `ConfigError` unless least ≤ value < below (least < value if `strict`)."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        fits = is_number and least <= float(value) < below and not (strict and float(value) == least)
    except OverflowError:
        fits = False
    if not fits:
        raise ConfigError(
            f"{name} must be a number {'above' if strict else 'of at least'} {least:g} and below {below:g}; "
            f"got {name}={value!r}. Use one in between."
        )
    return float(value)


def check_choice(name: str, value: Any, choices: Collection[str], *, optional: bool = False) -> None:
    """Raise `ConfigError` unless `value` is one of `choices`, or None if `optional`."""
    is_one = isinstance(value, str) and value in choices  # an array would be compared element by element
    if not is_one and not (optional and value is None):
        known = ", ".join(choices) + (", or left out" if optional else "")
        raise ConfigError(f"{name} must be one of {known}; got {name}={value!r}. Choose one.")


def named_fields(what: str) -> Callable[[type[T]], type[T]]:
    """Decorates a dataclass, `what` it is in words: its constructor checks the names of the fields first.

    It raises `ConfigError` for unknown or missing ones, where Python raises a `TypeError`.
    """

    def decorate(cls: type[T]) -> type[T]:
        made: Callable[..., None] = vars(cls)["__init__"]

        @functools.wraps(made)
        def __init__(self: T, *values: Any, **fields: Any) -> None:  # noqa: N807 - the constructor
            if not values:  # Python refuses those
                _check_names(cls, fields, what)
            made(self, *values, **fields)

        setattr(cls, "__init__", __init__)  # noqa: B010 - type checkers see the dataclass's own
        return cls

    return decorate


def from_fields(cls: type[T], fields: Mapping[str, Any], what: str) -> T:
    """The dataclass with these fields. Raises `ConfigError` for unknown or missing ones."""
    if not isinstance(fields, Mapping):
        raise ConfigError(f"{what} must be a JSON object; got {type(fields).__name__}. Use to_json().")
    _check_names(cls, fields, what)
    return cls(**fields)


def _check_names(cls: type, fields: Mapping[str, Any], what: str) -> None:
    assert dataclasses.is_dataclass(cls)
    known = {field.name: field for field in dataclasses.fields(cls)}
    for name in fields:
        if name not in known:
            raise ConfigError(
                f"{what} must have only known fields; got {name}={fields[name]!r}. "
                f"{did_you_mean(name, known)}Known fields: {', '.join(known)}."
            )
    missing = [n for n, f in known.items() if f.default is dataclasses.MISSING and n not in fields]
    if missing:
        raise ConfigError(
            f"{what} must name {', '.join(missing)}; got {', '.join(fields) or 'nothing'}. Add it."
        )


def did_you_mean(name: Any, known: Collection[str]) -> str:
    """A question that names the known field that `name` most likely stands for; empty if there is none."""
    meant = _SYNONYMS.get(name) if isinstance(name, str) else None
    if meant not in known:
        meant = next(iter(difflib.get_close_matches(str(name), known, n=1)), None)
    return f"Did you mean {meant}? " if meant else ""


def parse_json(text: str, what: str) -> Any:
    """The JSON value of `text`. Raises `ConfigError` if it is none, or names a field twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
            raise ConfigError(f"{what} must name a field once; got {twice} twice. Remove one.")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what} must be valid JSON; {error}. Write it with to_json().") from None


def plain(value: Any) -> Any:
    """A value as JSON can hold it: a number that is not finite becomes text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
