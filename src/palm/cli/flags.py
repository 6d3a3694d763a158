"""The flags that override single fields of a model, a recipe and a cadence, made from those classes."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_type_hints

import tyro

from palm.config import PaLMConfig
from palm.recipes import RECIPES, Recipe
from palm.training.cadence import Cadence

Attention = Literal["auto", "textbook", "blockwise", "sdpa", "flex", "cudnn", "splash", "pallas"]


def _flags(cls: type, default: str = "{}", of: Any = None) -> Any:
    """A dataclass of the same fields, all optional. The help is the class's own list of its fields.

    `default` says what a flag is that is not given, "{}" being the field's value in `of`.
    """
    told = dict(re.findall(r"- `(\w+)`: (.+?)(?=\n\s*- `|\n\n|\Z)", cls.__doc__ or "", re.DOTALL))
    fields: list[Any] = []
    for field in dataclasses.fields(cls):
        argument = tyro.conf.arg(
            help=" ".join(told[field.name].split()).replace("`", ""),
            help_behavior_hint=f"(default: {default.format(repr(getattr(of, field.name, None)))})",
        )
        hint = get_type_hints(cls)[field.name]
        fields.append((field.name, Annotated[hint | None, argument], None))
    flags = dataclasses.make_dataclass(f"{cls.__name__}Flags", fields, kw_only=True)
    return Annotated[flags, tyro.conf.arg(name="")]


if TYPE_CHECKING:  # made at run time, which a type checker cannot follow
    ModelFlags: TypeAlias = Any
    RecipeFlags: TypeAlias = Any
    CadenceFlags: TypeAlias = Any
else:
    ModelFlags = _flags(PaLMConfig, "the preset's")
    RecipeFlags = _flags(Recipe, "the recipe's, {} in bytes", RECIPES["bytes"])
    CadenceFlags = _flags(Cadence, of=Cadence())


def given(flags: Any) -> dict[str, Any]:
    """The flags that were, by name."""
    return {name: value for name, value in dataclasses.asdict(flags).items() if value is not None}
