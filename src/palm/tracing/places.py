"""Which line of a call stack is the user's own."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FrameType

from palm.tracing.operation import Place

# Libraries that a user's line calls. What implements whole models or optimisers is a program like a user's.
_LIBRARIES = (
    "torch",
    "jax",
    "jaxlib",
    "numpy",
    "einops",
    "equinox",
    "flax",
    "jaxtyping",
    "functools",
    "contextlib",
)
_PROGRAMS = ("torch/optim",)
# Parts of libraries of models through which their layers call the framework.
_BETWEEN = ("keras/src/backend/", "keras/src/ops/", "keras/src/utils/", "penzai/core/")
# So many callers of a line are kept.
CALLERS = 6
# Of palm itself, its models are programs too.
_PALM = Path(__file__).parents[1]
_MODELS = (_PALM / "torch_impl", _PALM / "jax_impl")


@cache
def _folders() -> tuple[str, ...]:
    found = []
    for name in _LIBRARIES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            path = Path(spec.origin)
            found.append(f"{path.parent}/" if path.name == "__init__.py" else str(path))
    return tuple(found)


@cache
def is_users(file: str) -> bool:
    """Whether a source file is the user's: no framework's, no library's between, not the tracer's."""
    if file.startswith("<") or any(part in file for part in _BETWEEN):
        return False
    path = Path(file)
    if path.is_relative_to(_PALM):
        return any(path.is_relative_to(folder) for folder in _MODELS) and path.parent.name != "trace"
    return any(part in file for part in _PROGRAMS) or not file.startswith(_folders())


@cache
def runs_programs(file: str) -> bool:
    """Whether a source file is a tracer's that calls the program: what called this is no part of it."""
    path = Path(file)
    return (
        path.is_relative_to(_PALM) and path.parent.name.startswith("trac") and path.stem.endswith("program")
    )


def own_frames(frame: FrameType | None) -> Iterator[FrameType]:
    """The user's frames, innermost first."""
    inside = False
    while frame is not None and not (inside and runs_programs(frame.f_code.co_filename)):
        if is_users(frame.f_code.co_filename):
            inside = True
            yield frame
        frame = frame.f_back


def place_of(frame: FrameType | None, module: str = "") -> Place | None:
    """The innermost place in the user's own source."""
    own = list(itertools.islice(own_frames(frame), CALLERS + 1))
    if not own:
        return None
    callers = tuple((f.f_code.co_filename, f.f_lineno) for f in own[1:])
    return Place(own[0].f_code.co_filename, own[0].f_lineno, own[0].f_code.co_name, module, callers)
