"""A side of a comparison as the command line has it: `backend[:checkpoint][@key=value,…]`, or a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from palm.checkpoint.checkpoint import load_arrays
from palm.checkpoint.manifest import MANIFEST
from palm.cli.flags import given
from palm.config import BACKENDS, Backend, DType, PaLMConfig
from palm.errors import ConfigError
from palm.parity.recording.bundle import is_bundle
from palm.parity.run.sides import Bundle, Original, Side
from palm.presets import preset as find_preset
from palm.upstream.tensors import SOURCES

GRAMMAR = (
    "backend[:checkpoint][@key=value,…], such as jax, torch:RUN/step-00000100 or "
    "torch@dtype=bfloat16,compile=on; or the folder of a bundle"
)

# Options by what they change, where a side leaves it open.
_WINDOWS, _REPEATS = ("batch", "length", "seed", "data"), ("repeat", "train")
_EXECUTION, _MODEL = ("dtype", "device", "attention"), ("preset", "architecture")


def parse_side(text: str, **defaults: Any) -> Side | Original | Bundle:
    """What `text` says, and `defaults` where it says nothing. Raises `ConfigError`."""
    head, _, tail = text.rpartition("@")
    name, options = (head, tail) if head and "=" in tail else (text, "")
    keys = [key for key in Side.__dataclass_fields__ if key not in ("backend", "checkpoint")]
    given: dict[str, str] = {}
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        if key not in keys or not equals:
            what = f"has no key {key!r}" if equals else f"has {option!r}, which is no key=value"
            raise ConfigError(
                f"side must be backend[:checkpoint][@key=value,…]; got side={text}, which {what}. "
                f"Keys: {', '.join(keys)}; no spaces."
            )
        if key in given:
            raise ConfigError(f"side must give a key once; got side={text}, with {key} twice. Remove one.")
        given[key] = value
    backend, colon, checkpoint = name.partition(":")
    if colon and not checkpoint:
        raise ConfigError(f"side must be {GRAMMAR}; got side={text}, with nothing after the colon. Add it.")
    if backend in SOURCES:
        if given:
            raise ConfigError(
                f"side must be an original as it is, {backend}[:weights]; got side={text}. "
                f"Leave {options} out."
            )
        return Original(backend, checkpoint or None)
    if backend in BACKENDS:
        own = {"checkpoint": checkpoint} if colon else {}
        return Side(**{"backend": backend, **defaults, **own, **given})
    if is_bundle(Path(text)):
        return Bundle(Path(text))
    if _is_there(Path(text) / MANIFEST):
        raise ConfigError(f"side must name its backend; got side={text}, a checkpoint. Write torch:{text}.")
    if _is_there(Path(text)):
        raise ConfigError(
            f"side must be {GRAMMAR}; got side={text}, a folder without bundle.json. Pass a checkpoint as "
            f"torch:{text}/step-…, or what palm record wrote."
        )
    raise ConfigError(
        f"side must be {GRAMMAR}; got side={text}, which is neither. Backends: "
        f"{', '.join((*BACKENDS, *SOURCES))}."
    )


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # no name of a file
        return False


def parse_sides(
    a: str, b: str, *, checkpoint: Path | None, dtype: DType | None, device: str | None, attention: str
) -> tuple[Side | Original | Bundle, Side | Original | Bundle]:
    """Both sides of a command; `dtype` None is float32, or that of a bundle on the other side."""
    defaults: dict[str, Any] = {"device": device, "attention": attention}
    if checkpoint is not None:
        defaults["checkpoint"] = str(checkpoint)
    defaults["dtype"] = dtype or "float32"
    one, other = (parse_side(text, **defaults) for text in (a, b))
    if dtype is None:
        for bundle in (one, other):
            if isinstance(bundle, Bundle):  # a live side beside it computes in its precision
                defaults["dtype"] = bundle.recording.dtype
        one, other = (parse_side(text, **defaults) for text in (a, b))
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
    paths = _checkpoints(sides)
    if paths:
        return load_arrays(paths[0])[0]
    return find_preset(preset or "small", **changes).resolve(architecture or "torch")


def model_name(sides: Sequence[Side | Original | Bundle], preset: str | None) -> str:
    """What is compared, for a reader."""
    names = _checkpoints(sides)
    names += [str(side.path) for side in sides if isinstance(side, Bundle)]
    names += [side.file or side.source for side in sides if isinstance(side, Original)]
    return ", ".join(dict.fromkeys(names)) or preset or "small"


def refuse_ignored(sides: Sequence[Side | Original | Bundle], request: Any) -> None:
    """Raise `ConfigError` for an option of the request that would change nothing, for a side has its own."""
    is_live = any(isinstance(side, Side) for side in sides)
    if any(isinstance(side, Bundle) for side in sides):
        what = "a bundle, which is one run of its own model"
        useless = [*_WINDOWS, *_REPEATS, *([] if is_live else _EXECUTION), *_MODEL]
    elif any(isinstance(side, Original) for side in sides):
        what = "an original, which has its own model and is compared once"
        useless = [*_REPEATS, *_MODEL]
    elif len(_checkpoints(sides)) == len(sides):
        what = "checkpoints, which have their own model"
        useless = [*_MODEL]
    else:
        return
    usual = {field.name: field.default for field in fields(request)}
    told = [name for name in useless if name in usual and getattr(request, name) != usual[name]]
    told = [f"--{name.replace('_', '-')}" for name in [*told, *given(request.model)]]
    if told:
        raise ConfigError(f"{', '.join(told)} must not be given beside {what}. Leave it out.")


def _checkpoints(sides: Sequence[Side | Original | Bundle]) -> list[str]:
    return [side.checkpoint for side in sides if isinstance(side, Side) and side.checkpoint is not None]
