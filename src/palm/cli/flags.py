"""The flags that several commands have, and those that override fields of a model, a recipe, a cadence."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    get_type_hints,
)

import docstring_parser
import tyro

from palm.config import PaLMConfig
from palm.recipes import RECIPES, Recipe
from palm.training.cadence import Cadence

T = TypeVar("T")
# The fields of a command's request are its flags.
Request = Annotated[T, tyro.conf.arg(name="")]
Attention = Literal["auto", "textbook", "blockwise", "sdpa", "flex", "cudnn", "splash", "pallas"]


def default(told: str, **options: Any) -> Any:
    """An annotation of a flag: its default in words."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {told})", **options)


Optional = tyro.conf.arg(help_behavior_hint="(optional)")
Architecture = Annotated[Literal["torch", "jax"] | None, default("torch")]
PresetName = Annotated[str | None, default("small")]
Text = Annotated[Path | None, default("the sources of Python's standard library")]


def _flags(cls: type, told: str = "{}", of: Any = None) -> Any:
    """A dataclass of the same fields, all optional. Their help is the attribute docstrings of `cls`.

    `told` says what the default is, "{}" being the value of the field in `of`.
    """
    docstrings = {doc.arg_name: doc.description for doc in docstring_parser.parse_from_object(cls).params}
    if sys.flags.optimize > 1:  # python -OO keeps no docstrings: the flags come without help
        docstrings = {field.name: None for field in dataclasses.fields(cls)}
    fields: list[Any] = []
    for field in dataclasses.fields(cls):
        text = " ".join((docstrings[field.name] or "").split()).replace("`", "")
        argument = default(told.format(repr(getattr(of, field.name, None))), help=text)
        hint = get_type_hints(cls)[field.name]
        fields.append((field.name, Annotated[hint | None, argument], None))
    flags = dataclasses.make_dataclass(f"{cls.__name__}Flags", fields, kw_only=True, frozen=True)
    return tyro.conf.configure(tyro.conf.FlagConversionOff)(flags)  # --share-kv True, as in the config


if TYPE_CHECKING:  # made at run time, which a type checker cannot follow

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class ModelFlags:
        """The fields of `PaLMConfig`."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class RecipeFlags:
        """The fields of `Recipe`, of which a command reads one by itself."""

        steps: int | None

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class CadenceFlags:
        """The fields of `Cadence`."""
else:
    ModelFlags = _flags(PaLMConfig, "the preset's")
    RecipeFlags = _flags(Recipe, "the recipe's, {} in bytes", RECIPES["bytes"])
    CadenceFlags = _flags(Cadence, of=Cadence())


def given(flags: ModelFlags | RecipeFlags | CadenceFlags) -> dict[str, Any]:
    """The flags that were given, by name."""
    return {name: value for name, value in dataclasses.asdict(flags).items() if value is not None}
