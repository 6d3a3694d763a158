"""The two sides of a comparison, as they are asked for: live, a published original, or a bundle."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from palm.backends import check_attention
from palm.config import Backend, DType
from palm.errors import ConfigError
from palm.fields import check_choice
from palm.parity.recording.bundle import read_bundle
from palm.parity.recording.excerpt import Excerpt
from palm.parity.recording.recording import REMAT, Recording
from palm.spec.parameters import DTYPES

MATMUL = ("float32", "tensorfloat32", "bfloat16")
SWITCH = ("on", "off")


@dataclass(frozen=True)
class Side:
    """One side that runs live, and how. None: the backend's own way.

    - `backend`: torch or jax.
    - `checkpoint`: the directory its weights come from; None: drawn from the seed.
    - `dtype`: its working precision.
    - `device`: where it runs, by the framework's name.
    - `matmul`: how precisely float32 matrices are multiplied: float32, tensorfloat32 or bfloat16 passes.
    - `attention`: its attention path.
    - `compile`: on or off: torch.compile, or jax.jit.
    - `remat`: on, off or feedforward: whole blocks, nothing, or that part of them, is computed again in the
      backward pass.
    """

    backend: Backend
    checkpoint: str | None = None
    dtype: DType = "float32"
    device: str | None = None
    matmul: str | None = None
    attention: str = "auto"
    compile: str | None = None
    remat: str = "off"

    def __post_init__(self) -> None:
        """Raise `ConfigError` for a value that no side can have."""
        if self.device == "meta":
            raise ConfigError("device must hold values; got device=meta. Use cpu, or leave it out.")
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("matmul", self.matmul, MATMUL, optional=True)
        check_attention(self.attention, self.backend)
        check_choice("compile", self.compile, SWITCH, optional=True)
        check_choice("remat", self.remat, REMAT)

    def to_dict(self) -> dict[str, Any]:
        """As the process that runs it reads it."""
        return asdict(self)


@dataclass(frozen=True)
class Original:
    """One of the four published originals, live, of which only logits are compared."""

    source: str
    file: str | None


@dataclass(frozen=True)
class Bundle:
    """A recording that `palm record` wrote."""

    path: Path

    @cached_property
    def recording(self) -> Recording | Excerpt:
        """What is in it, read once. Raises `BundleError`."""
        return read_bundle(self.path)


def labels(a: Side, b: Side) -> tuple[str, str]:
    """A short name for each of two sides: the backend, and what else they differ in."""
    ours, theirs = a.to_dict(), b.to_dict()
    differing = [key for key in ours if ours[key] != theirs[key]]
    if differing == ["backend"] or not differing:
        return a.backend, b.backend
    return _label(ours, differing), _label(theirs, differing)


def _label(side: dict[str, Any], differing: list[str]) -> str:
    told = [side["backend"]]
    for key in differing:
        value = side[key]
        if key == "dtype":
            told.append(value)
        elif key == "backend" or value == Side.__dataclass_fields__[key].default:
            continue
        elif key in ("matmul", "compile", "remat"):
            told.append(f"{key} {value}")
        else:
            told.append(Path(value).name if key == "checkpoint" else value)
    return " ".join(told)
