"""A side of a comparison as the command line has it: `backend[:checkpoint][@key=value,…]`, or a bundle."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from palm.checkpoint.checkpoint import load_arrays
from palm.checkpoint.locate import checkpoint_path
from palm.checkpoint.manifest import MANIFEST, RUN_SETTINGS
from palm.cli.flags import given
from palm.config import BACKENDS, Backend, DType, PaLMConfig
from palm.errors import ConfigError
from palm.parity.recording.bundle import is_bundle
from palm.parity.run.sides import Bundle, Original, Side
from palm.presets import preset as find_preset
from palm.upstream.tensors import SOURCES

GRAMMAR = (
    "backend[:checkpoint][@key=value,…], such as jax, torch:RUN, torch:RUN/step-00000100 or "
    "torch@dtype=bfloat16,compile=on or torch@decode=on; or the folder of a bundle"
)

# Options by what they change, where a side leaves it open.
_WINDOWS, _REPEATS = ("batch", "length", "seed", "data"), ("repeat", "train")
_EXECUTION, _MODEL = ("dtype", "device", "attention"), ("preset", "architecture")


def parse_side(text: str, **defaults: Any) -> Side | Original | Bundle:
    """What `text` says, and `defaults` where it says nothing. Raises `ConfigError`.

    Of a run as the checkpoint, the side has the newest one, of RUN/best the best.
    """
    head, _, tail = text.rpartition("@")
    name, options = (head, tail) if head and "=" in tail else (text, "")
    chosen = _options(text, options)
    backend, colon, checkpoint = name.partition(":")
    if colon and not checkpoint:
        raise ConfigError(
            f"side must be {GRAMMAR}; got side={text}, with nothing after the colon. Name the checkpoint."
        )
    if backend in SOURCES:
        if chosen:
            raise ConfigError(
                f"side must be {backend}[:weights], because an original takes no options; got side={text}. "
                f"Leave {options} out."
            )
        return Original(backend, checkpoint or None)
    if backend in BACKENDS:
        own = {"checkpoint": str(checkpoint_path(checkpoint))} if colon else {}
        return Side(**{"backend": backend, **defaults, **own, **chosen})
    if is_bundle(Path(text)):
        return Bundle(Path(text))
    raise ConfigError(_no_side(text))


def _options(text: str, options: str) -> dict[str, str]:
    """The options after the @ of a side, by key."""
    keys = [field.name for field in fields(Side) if field.name not in ("backend", "checkpoint")]
    chosen: dict[str, str] = {}
    # The axes of a mesh are separated by commas, too.
    for option in filter(None, re.split(r",(?!(?:pod|data|model):)", options)):
        key, equals, value = option.partition("=")
        if key not in keys or not equals:
            what = f"has no key {key!r}" if equals else f"has {option!r}, which is no key=value"
            raise ConfigError(
                f"side must be backend[:checkpoint][@key=value,…]; got side={text}, which {what}. "
                f"Keys: {', '.join(keys)}; no spaces."
            )
        if key in chosen:
            raise ConfigError(f"side must give a key once; got side={text}, with {key} twice. Remove one.")
        chosen[key] = value
    return chosen


def _no_side(text: str) -> str:
    """The message about a text that names no backend, original or bundle."""
    path = Path(text)
    try:
        kinds = {file: (path / file).exists() for file in (MANIFEST, RUN_SETTINGS, "")}
    except OSError:  # too long for the name of a file
        kinds = {}
    if kinds.get(MANIFEST) or kinds.get(RUN_SETTINGS):
        what = "a checkpoint" if kinds[MANIFEST] else "a run"
        return f"side must name its backend; got side={text}, {what}. Write torch:{text}."
    if text and kinds.get(""):
        what = "a file" if path.is_file() else "a folder without bundle.json"
        return (
            f"side must be {GRAMMAR}; got side={text}, {what}. Pass a folder that palm record wrote, or a "
            "checkpoint as torch:CHECKPOINT."
        )
    backends = ", ".join((*BACKENDS, *SOURCES))
    return f"side must be {GRAMMAR}; got side={text}, which is none of these. Backends: {backends}."


def parse_sides(
    a: str, b: str, *, checkpoint: Path | None, dtype: DType | None, device: str | None, attention: str
) -> tuple[Side | Original | Bundle, Side | Original | Bundle]:
    """Both sides of a command; `dtype` None is float32, or that of a bundle on the other side."""
    defaults: dict[str, Any] = {"device": device, "attention": attention, "dtype": dtype or "float32"}
    if checkpoint is not None:
        defaults["checkpoint"] = str(checkpoint_path(checkpoint))
    one, other = parse_side(a, **defaults), parse_side(b, **defaults)
    bundles = [side for side in (one, other) if isinstance(side, Bundle)]
    if dtype is None and bundles:
        defaults["dtype"] = bundles[-1].recording.dtype
        return parse_side(a, **defaults), parse_side(b, **defaults)
    return one, other


def config_of_sides(
    sides: Sequence[Side | Original | Bundle],
    preset: str | None,
    architecture: Backend | None,
    changes: Mapping[str, Any],
) -> PaLMConfig:
    """The config of the first bundle or checkpoint, or the one to build from the seed."""
    for side in sides:
        if isinstance(side, Bundle):
            return side.recording.config
    paths = checkpoints_of(sides)
    if paths:
        return load_arrays(paths[0])[0]
    return find_preset(preset or "small", **changes).resolve(architecture or "torch")


def model_name(sides: Sequence[Side | Original | Bundle], preset: str | None) -> str:
    """What is compared, for a reader."""
    names = checkpoints_of(sides)
    names += [str(side.path) for side in sides if isinstance(side, Bundle)]
    names += [side.file or side.source for side in sides if isinstance(side, Original)]
    return ", ".join(dict.fromkeys(names)) or preset or "small"


def plain_and_served(sides: Sequence[Side | Original | Bundle]) -> tuple[Side, Side]:
    """The plain side, and that with decode, rows or padding. Raises `ConfigError` for other pairs."""
    live = [side for side in sides if isinstance(side, Side)]
    plain, own = ([side for side in live if side.is_served is served] for served in (False, True))
    if not (plain and own):
        got = "two such sides" if len(own) > 1 else "a side that is not live"
        raise ConfigError(
            "a side with decode, rows or padding must be compared with a plain one, such as torch or jax; "
            f"got {got}. Compare each with a plain side."
        )
    return plain[0], own[0]


def refuse_ignored(sides: Sequence[Side | Original | Bundle], request: Any) -> None:
    """Raise `ConfigError` for an option of the request that would change nothing, for a side has its own."""
    is_live = any(isinstance(side, Side) for side in sides)
    if any(isinstance(side, Bundle) for side in sides):
        what = "a bundle, which has its own model and tokens"
        useless = [*_WINDOWS, *_REPEATS, *([] if is_live else _EXECUTION), *_MODEL]
    elif any(isinstance(side, Original) for side in sides):
        what = "an original, which has its own model and is compared once"
        useless = [*_REPEATS, *_MODEL]
    elif any(isinstance(side, Side) and side.is_served for side in sides):
        what = "decode, rows or padding, of which logits are compared, once"
        useless = [*_REPEATS, *(_MODEL if checkpoints_of(sides) else [])]
    elif len(checkpoints_of(sides)) == len(sides):
        what = "checkpoints, which have their own model"
        useless = [*_MODEL]
    else:
        return
    fields_of_model = given(request.model) if "preset" in useless else {}
    usual = {field.name: field.default for field in fields(request)}
    told = [name for name in useless if name in usual and getattr(request, name) != usual[name]]
    told = [f"--{name.replace('_', '-')}" for name in [*told, *fields_of_model]]
    if told:
        raise ConfigError(f"{', '.join(told)} cannot be used with {what}. Leave it out.")


def checkpoints_of(sides: Sequence[Side | Original | Bundle]) -> list[str]:
    """The paths of the checkpoints that live sides name."""
    return [side.checkpoint for side in sides if isinstance(side, Side) and side.checkpoint is not None]
