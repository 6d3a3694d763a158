"""The comparisons of gpu.sh: sizes that fill an accelerator, or of a dry run tiny ones."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field

from speed_groups import GPU_LENGTH, GPU_SIZES, Group
from speed_specs import Maker, Options
from timing import Spec

DIM_HEAD = 128
# Which package a peer comes from.
PACKAGES = {"x-transformers": "x_transformers", "falcon": "transformers"}


@dataclass(frozen=True)
class Scale:
    """How large the jobs are: (dim, depth) by name, the largest one first, tokens, batches."""

    sizes: dict[str, tuple[int, int]] = field(default_factory=lambda: dict(reversed(GPU_SIZES.items())))
    length: int = GPU_LENGTH
    batch: int = 8
    context: int = 1024
    decode_batches: tuple[int, ...] = (1, 8, 64)
    peer_batches: tuple[int, ...] = (1, 8)
    megabytes: int = 1024
    repeats: int = 10


TINY = Scale(
    sizes={"tiny": (256, 1)},
    length=64,
    batch=2,
    context=32,
    decode_batches=(1, 2),
    peer_batches=(1,),
    megabytes=16,
    repeats=1,
)


def _maker(scale: Scale, size: str, job: str, length: int, batch: int) -> Maker:
    dim, depth = scale.sizes[size]
    options = Options(
        dim=dim, depth=depth, heads=dim // DIM_HEAD, dim_head=DIM_HEAD, megabytes=scale.megabytes
    )
    return Maker(options, job, length, batch)


def mfu(scale: Scale) -> Iterator[Group]:
    """Training steps in bfloat16: each size rotary in both wings; the middle one with ALiBi, too."""
    limit = _maker(scale, next(iter(scale.sizes)), "limits", 0, 1)
    sides = tuple(limit.limit(framework, "bfloat16", "bandwidth") for framework in ("torch", "jax"))
    yield Group("limits", "products and reading", sides, alone=True)
    for size in scale.sizes:
        make = _maker(scale, size, "training", scale.length, scale.batch)
        yield Group("sizes", f"{size}, rotary", _wings(make, "rotary"), alone=True)
    middle = list(scale.sizes)[len(scale.sizes) // 2]
    make = _maker(scale, middle, "training", scale.length, scale.batch)
    yield Group("sizes", f"{middle}, ALiBi", _wings(make, "alibi"), alone=True)


def decode(scale: Scale) -> Iterator[Group]:
    """One more token into each sequence of the largest model."""
    size = next(iter(scale.sizes))
    for batch in scale.decode_batches:
        make = _maker(scale, size, "decode", scale.context, batch)
        limits = tuple(make.limit(framework, "bandwidth") for framework in ("torch", "jax"))
        alibi = _wings(make, "alibi") if batch == scale.decode_batches[0] else ()
        name = f"{size}, batch {batch}, {scale.context:,} before"
        yield Group("decode", name, (*_wings(make, "rotary"), *alibi, *limits))


def peers(scale: Scale) -> Iterator[Group]:
    """Other libraries beside both wings: a training step, and decoding where a library has a cache."""
    size = list(scale.sizes)[len(scale.sizes) // 2]
    make = _maker(scale, size, "training", scale.length, scale.batch)
    others = tuple(_peer(make, model) for model in PACKAGES)
    yield Group("sizes", f"{size}, training", (*_wings(make, "rotary"), *others), alone=True)
    for batch in scale.peer_batches:
        make = _maker(scale, size, "decode", scale.context, batch)
        falcons = tuple(_peer(make, "falcon", cache=cache) for cache in ("dynamic", "static"))
        name = f"{size}, batch {batch}, {scale.context:,} before"
        yield Group("decode", name, (*_wings(make, "rotary"), *falcons))


def profiled(scale: Scale, backend: str) -> Spec:
    """The training step whose profile is taken: the middle size, rotary."""
    make = _maker(scale, list(scale.sizes)[len(scale.sizes) // 2], "training", scale.length, scale.batch)
    return make.palm(backend, "rotary", "bfloat16", against=None)


def _wings(make: Maker, positions: str) -> tuple[Spec, ...]:
    torch = make.palm("torch", positions, "bfloat16", against=None)
    return torch, make.palm("jax", positions, "bfloat16", against=torch["name"])


def _peer(make: Maker, model: str, **more: str) -> Spec:
    spec = make.peer(model, "rotary", "palm torch rotary, bf16", precision="bfloat16", **more)
    if importlib.util.find_spec(PACKAGES[model]) is None:
        spec["left_out"] = f"{PACKAGES[model]} is not installed"
    return spec


PARTS = {"mfu": mfu, "decode": decode, "peers": peers}
