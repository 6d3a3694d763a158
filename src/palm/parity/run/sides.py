"""The sides of a comparison as they are asked for: live, a published original, or a bundle."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
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
from palm.parity.run.serving import PADDING, ROWS, check_padding
from palm.spec.mesh import Mesh, mesh_of
from palm.spec.parameters import DTYPES

MATMUL = ("float32", "tensorfloat32", "bfloat16")
SWITCH = ("on", "off")


@dataclass(frozen=True)
class Side:
    """One side that runs live, and how. None: as the backend does by itself."""

    backend: Backend
    """torch or jax."""
    checkpoint: str | None = None
    """The directory of its weights. None: they are drawn from the seed."""
    dtype: DType = "float32"
    """Its working precision."""
    device: str | None = None
    """Where it runs, by the framework's name."""
    matmul: str | None = None
    """Precision of float32 matmuls: float32, tensorfloat32 or bfloat16 passes."""
    attention: str = "auto"
    """Its attention path."""
    compile: str | None = None
    """on or off: torch.compile or jax.jit."""
    remat: str = "off"
    """What the backward pass computes again: whole blocks (on), nothing (off), or their feedforward."""
    mesh: str | None = None
    """Several devices in place of one, such as data:2,model:2."""
    decode: str = "off"
    """on: its logits are decoded with a cache, a token at a time."""
    rows: str = "together"
    """alone: each sequence is a batch of its own."""
    padding: str = "none"
    """left: other ids stand in front of each sequence."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for a value that no side can have."""
        if self.device == "meta":
            raise ConfigError("device must be a real device; got device=meta. Use cpu, or leave it out.")
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("matmul", self.matmul, MATMUL, optional=True)
        check_attention(self.attention, self.backend)
        check_choice("compile", self.compile, SWITCH, optional=True)
        check_choice("remat", self.remat, REMAT)
        check_choice("decode", self.decode, SWITCH)
        check_choice("rows", self.rows, ROWS)
        check_choice("padding", self.padding, PADDING)
        check_padding(self.padding, decode=self.decode == "on")
        if self.is_served and (self.compile, self.remat, self.grid.size) != (None, "off", 1):
            raise ConfigError(
                "a side with decode, rows or padding must not set compile, remat or mesh; got one of these. "
                "Leave it out."
            )
        if self.grid.size > 1 and self.device is not None:
            raise ConfigError(
                f"device must be left out where a mesh is given; got device={self.device}, mesh={self.mesh}. "
                "Leave one of them out."
            )

    @property
    def is_served(self) -> bool:
        """Whether its logits are computed as in serving, and nothing else (`palm.served`)."""
        return (self.decode, self.rows, self.padding) != ("off", "together", "none")

    @property
    def grid(self) -> Mesh:
        """What it runs on. Raises `ConfigError` for what is no mesh."""
        return mesh_of(self.mesh and self.mesh.replace(":", "="))

    def to_dict(self) -> dict[str, Any]:
        """As the process that runs it reads it."""
        own = {"mesh": str(self.grid), "devices": self.grid.size, "is_served": self.is_served}
        return {**asdict(self), **own}


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


def labels(*sides: Side) -> tuple[str, ...]:
    """A short name for each side: its backend, and what else the sides differ in."""
    asked = [asdict(side) for side in sides]
    differing = [field.name for field in fields(Side) if len({side[field.name] for side in asked}) > 1]
    if differing == ["backend"]:
        return tuple(side.backend for side in sides)
    return tuple(_label(side, differing) for side in asked)


def _label(side: dict[str, Any], differing: list[str]) -> str:
    told = [side["backend"]]
    for key in differing:
        value = side[key]
        if key == "dtype":
            told.append(value)
        elif key == "backend" or value == Side.__dataclass_fields__[key].default:
            continue
        elif key in ("matmul", "compile", "remat", "mesh", "decode", "rows", "padding"):
            told.append(f"{key} {value}")
        else:
            told.append(Path(value).name if key == "checkpoint" else value)
    return " ".join(told)
