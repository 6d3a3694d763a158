"""The mesh of devices, and which axis of which tensor is cut along which axis of the mesh.

One table for both wings: JAX's PartitionSpecs and torch's placements are read from it. The mesh is no part of
config, recipe or checkpoint: a run goes on under another mesh.
Letters: d dim, h heads, e dim_head, f ff_mult·dim, v num_tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from types import MappingProxyType
from typing import Literal, TypeAlias

from palm.config import PaLMConfig
from palm.errors import ConfigError
from palm.fields import integer
from palm.spec.parameters import Axis, Parameter, parameters

MeshAxis = Literal["pod", "data", "model"]
# What a dimension of a tensor is cut along; None: each device has all of it.
Cut = MeshAxis | None

# A mesh, its axes by name, or `data=4,model=2`; None: one device.
AnyMesh: TypeAlias = "Mesh | Mapping[str, int] | str | None"
# Each logical axis of a weight, its gradient and its moments. `data` cuts what `model` leaves whole (FSDP).
WEIGHTS: Mapping[Axis, Cut] = MappingProxyType(
    {"vocab": "model", "heads": "model", "ff": "model", "embed": "data", "kv": None, "layers": None}
)
# The axes that share out the sequences of a batch.
BATCH: tuple[MeshAxis, ...] = ("pod", "data")


@dataclass(frozen=True)
class Mesh:
    """Devices in a grid of pod × data × model.

    `data` shares out the sequences of a batch, and the weights (FSDP). `model` shares out heads, feed-forward
    columns and vocabulary (tensor parallelism). `pod` shares out sequences only: each pod has all weights.
    """

    pod: int = 1
    data: int = 1
    model: int = 1

    def __post_init__(self) -> None:
        """Raises `ConfigError` unless each size is a whole number of at least 1."""
        for name in self.shape:
            object.__setattr__(self, name, integer(f"mesh: {name}", getattr(self, name), least=1))

    @property
    def shape(self) -> dict[MeshAxis, int]:
        """The size of each axis, the slowest network first."""
        return {"pod": self.pod, "data": self.data, "model": self.model}

    @property
    def size(self) -> int:
        """The number of devices."""
        return math.prod(self.shape.values())

    @property
    def replicas(self) -> int:
        """How many parts a batch is cut into."""
        return math.prod(self.shape[axis] for axis in BATCH)

    def __str__(self) -> str:
        """As it is written on the command line, such as `data=4,model=2`."""
        return ",".join(f"{name}={size}" for name, size in self.shape.items() if size > 1) or "data=1"


def mesh_of(given: AnyMesh) -> Mesh:
    """The mesh that is meant: one, its axes by name, or `data=4,model=2`; None: one device.

    Raises `ConfigError` for an axis that there is not, one that is named twice, or a size below 1.
    """
    if isinstance(given, Mesh):
        return given
    pairs = list(_pairs(given)) if isinstance(given, str) else list((given or {}).items())
    known = [field.name for field in fields(Mesh)]
    names = [name for name, _ in pairs]
    if any(name not in known for name in names) or len(set(names)) < len(names):
        raise ConfigError(
            f"mesh must name each of {', '.join(known)} at most once; got mesh={given!r}. "
            "Write data=4,model=2."
        )
    return Mesh(**dict(pairs))


def _pairs(text: str) -> Iterator[tuple[str, int]]:
    for part in text.split(","):
        name, _, size = part.partition("=")
        if not (size.isdecimal() and size.isascii() and len(size) < 10):
            raise ConfigError(
                f"mesh must be sizes by name, such as data=4,model=2; got mesh={text!r}. Write it like this."
            )
        yield name.strip(), int(size)


@lru_cache(maxsize=32)
def cuts(config: PaLMConfig, mesh: Mesh) -> Mapping[str, tuple[Cut, ...]]:
    """For each parameter of a resolved config, in the canonical layout, how each dimension is cut.

    A dimension whose size does not divide stays whole, and a head is never cut. A vector stays whole.
    """
    return MappingProxyType({name: _cut(config, mesh, row) for name, row in parameters(config).items()})


def _cut(config: PaLMConfig, mesh: Mesh, parameter: Parameter) -> tuple[Cut, ...]:
    if len(parameter.shape) == 1:
        return (None,)
    return tuple(WEIGHTS[axis] if ways(config, mesh, axis) > 1 else None for axis in parameter.axes)


def ways(config: PaLMConfig, mesh: Mesh, axis: Axis) -> int:
    """How many parts an axis of the weights is cut into: 1 if it stays whole."""
    asked = WEIGHTS[axis]
    if asked is None or _sizes(config)[axis][1] % mesh.shape[asked]:
        return 1
    return mesh.shape[asked]


def _sizes(config: PaLMConfig) -> dict[Axis, tuple[str, int]]:
    """The name of each axis that is cut, and how many there are to share out."""
    return {
        "vocab": ("num_tokens", config.num_tokens),
        "heads": ("heads", config.heads),
        "ff": ("ff_mult·dim", config.ff_dim),
        "embed": ("dim", config.dim),
    }


def left_whole(config: PaLMConfig, mesh: Mesh) -> tuple[str, ...]:
    """In words, what the mesh would cut but cannot, because its size does not divide."""
    return tuple(
        f"{name}={size} is not a multiple of {asked}={mesh.shape[asked]}, so each device has all of it"
        for axis, (name, size) in _sizes(config).items()
        for asked in (WEIGHTS[axis],)
        if asked is not None and ways(config, mesh, axis) < mesh.shape[asked]
    )


def piece(cut: tuple[Cut, ...], shape: tuple[int, ...], mesh: Mesh) -> tuple[int, ...]:
    """The shape of each device's piece of a tensor."""
    return tuple(
        size if one is None else size // mesh.shape[one] for one, size in zip(cut, shape, strict=True)
    )


def check_batch(batch: int, accumulate: int, mesh: Mesh) -> None:
    """Raise `ConfigError` unless the sequences of each micro-batch can be shared out evenly."""
    if (batch // accumulate) % mesh.replicas:
        raise ConfigError(
            f"batch must be a multiple of accumulate · pod · data = {accumulate * mesh.replicas} on the mesh "
            f"{mesh}; got batch={batch}. Change batch, accumulate or the mesh."
        )
