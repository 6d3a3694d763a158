"""Names that a package offers and loads when they are first asked for, so that importing it stays quick."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Any


def on_first_use(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package; `homes` says where each name is, as module:name.

    The package's modules are found without an import of their own, too.
    """
    names = vars(sys.modules[package])

    def load(name: str) -> Any:
        if name not in homes:
            if not name.startswith("_") and find_spec(f"{package}.{name}") is not None:
                return import_module(f"{package}.{name}")
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        names[name] = resolve_name(homes[name])  # kept, so that it is not asked for again
        return names[name]

    def listed() -> list[str]:
        return sorted({*names, *homes})

    return load, listed
