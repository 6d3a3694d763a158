"""How flags of one of several words are read and shown."""

from __future__ import annotations

from types import NoneType
from typing import Any, Literal, get_args, get_origin

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

CHOICES = ConstructorRegistry()


@CHOICES.primitive_rule
def _choices(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """`Literal[…] | None`: its choices in their order. tyro's own rule shuffles them and offers None."""
    options = [option for option in get_args(info.type) if option is not NoneType]
    if len(options) != 1 or NoneType not in get_args(info.type) or get_origin(options[0]) is not Literal:
        return None
    names: tuple[str, ...] = get_args(options[0])
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(names) + "}",
        instance_from_str=lambda given: given[0],
        is_instance=lambda value: value is None or value in names,
        str_from_instance=lambda value: [str(value)],
        choices=names,
    )
