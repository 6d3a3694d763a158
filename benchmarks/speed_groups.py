"""Which sides are measured beside each other, on which job: the comparisons of speed.py.

A group is one comparison: its sides take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from speed_specs import Maker, Options
from timing import Spec

from palm.recipes import Remat

# Configs of about 150 M, 400 M and 1 B parameters, for an accelerator: (dim, depth), heads of 128.
GPU_SIZES = {"150 M": (1024, 10), "400 M": (1536, 12), "1 B": (2048, 17)}
GPU_LENGTH = 2048
# Of the JAX step whose compile time must not grow with depth.
COMPILE_DEPTHS = (4, 64)


@dataclass(frozen=True)
class Group:
    """One comparison. `alone`: its sides run one after the other, each with the machine to itself."""

    case: str
    name: str
    sides: tuple[Spec, ...]
    alone: bool = False


def training(options: Options) -> Iterator[Group]:
    """A training step: next-token cross entropy of (1, n + 1) tokens, gradients, AdamW."""
    for length in options.lengths:
        yield from _products(Maker(options, "training", length), "training", f"n {length:,}")


def forward(options: Options) -> Iterator[Group]:
    """Logits of (1, n) tokens, no gradients."""
    for length in options.lengths:
        yield from _products(Maker(options, "forward", length), "forward", f"n {length:,}")


def prefill(options: Options) -> Iterator[Group]:
    """The forward pass of a prompt, into the cache where there is one."""
    make = Maker(options, "prefill", options.context)
    yield from _products(make, "prefill", f"prompt of {options.context:,}", cache="dynamic")


def _products(make: Maker, case: str, name: str, **falcon: str) -> Iterator[Group]:
    """What is bound by matrix products: each wing beside its peers, and the wings beside each other."""
    kinds = ("float32", "bfloat16")
    yield Group(
        case,
        f"{name}, torch",
        (
            make.palm("torch", "alibi"),
            make.palm("torch", "rotary"),
            make.palm("torch", "alibi", "bfloat16"),
            make.peer("palm_lite", "alibi", "palm torch"),
            make.peer("palm_pytorch", "rotary", "palm torch rotary"),
            make.peer("x-transformers", "rotary", "palm torch rotary"),
            make.peer("falcon", "rotary", "palm torch rotary", **falcon),
            make.limit("torch", *kinds),
            make.limit("jax", *kinds),
        ),
    )
    yield Group(
        case,
        f"{name}, JAX",
        (
            # No ALiBi, which is beside torch's below: what sides keep must leave the original its memory.
            make.palm("jax", "rotary"),
            make.palm("jax", "rotary", "bfloat16"),
            make.peer("palm_jax", "rotary", "palm jax"),
            make.limit("torch", *kinds),
            make.limit("jax", *kinds),
        ),
    )
    yield Group(case, f"{name}, wings", _wings(make))


def _wings(make: Maker) -> tuple[Spec, ...]:
    """The same two configs in both wings."""
    return (
        make.palm("torch", "alibi"),
        make.palm("jax", "alibi", against="palm torch"),
        make.palm("torch", "rotary"),
        make.palm("jax", "rotary", against="palm torch rotary"),
    )


def decode(options: Options) -> Iterator[Group]:
    """One more token into each sequence."""
    for batch in options.batches:
        make = Maker(options, "decode", options.context, batch)
        name = f"batch {batch}, {options.context:,} before"
        limits = [make.limit("torch", "bandwidth"), make.limit("jax", "bandwidth")]
        falcons = [
            make.peer("falcon", "rotary", against, cache=cache, precision=precision)
            for precision, against in (
                ("float32", "palm torch rotary"),
                ("bfloat16", "palm torch rotary, bf16"),
            )
            for cache in ("dynamic", "static")
        ]
        ours = [make.palm("torch", p, t) for t in ("float32", "bfloat16") for p in ("alibi", "rotary")]
        # Without a cache a new token is a whole forward pass: in a batch nobody would wait for it.
        lite = [make.peer("palm_lite", "alibi", "palm torch")] if batch == 1 else []
        yield Group("decode", f"{name}, torch", (*ours, *lite, *falcons, *limits))
        ours = [make.palm("jax", p, t) for t in ("float32", "bfloat16") for p in ("rotary", "alibi")]
        original = [make.peer("palm_jax", "rotary", "palm jax")] if batch == 1 else []
        yield Group("decode", f"{name}, JAX", (*ours, *original, *limits))
        yield Group("decode", f"{name}, wings", _wings(make))


def memory(options: Options) -> Iterator[Group]:
    """The most memory that training steps take, each length in a fresh process."""
    shortest = options.memory_lengths[0]
    sides = []
    for length in options.memory_lengths:
        make = Maker(options, "training", length)
        own = [make.palm(backend, p, remat=remat) for backend, p in _OWN.items() for remat in _REMAT]
        for spec in [*own, make.peer("palm_lite", "alibi", ""), make.peer("palm_jax", "rotary", "")]:
            what = spec["name"] + _REMAT[spec.get("remat", False)]
            against = f"{what}, n {shortest:,}" if length != shortest else None
            sides.append({**spec, "name": f"{what}, n {length:,}", "against": against})
    yield Group("memory", "peak of training", tuple(sides), alone=True)


_OWN = {"torch": "alibi", "jax": "rotary"}
# What a step computes again: whole blocks, their feed-forward (ff), nothing.
_REMAT: dict[Remat, str] = {True: ", remat", "feedforward": ", ff", False: ""}


def compilation(options: Options) -> Iterator[Group]:
    """Tracing and compiling JAX's training step, narrow and short, at two depths."""
    sides = []
    for depth in COMPILE_DEPTHS:
        small = Options(dim=64, heads=4, dim_head=16, depth=depth, attention=options.attention)
        spec = Maker(small, "compile", 64).palm("jax", "rotary")
        against = f"palm jax, depth {COMPILE_DEPTHS[0]}" if depth != COMPILE_DEPTHS[0] else None
        sides.append({**spec, "name": f"palm jax, depth {depth}", "against": against})
    yield Group("compile", "training step", tuple(sides))


def limits(options: Options) -> Iterator[Group]:
    """What the machine can do: products in both precisions, and reading memory."""
    make = Maker(options, "limits", 0)
    kinds = ("float32", "bfloat16", "bandwidth")
    yield Group("limits", "products and reading", tuple(make.limit(f, *kinds) for f in ("torch", "jax")))


def sizes(options: Options) -> Iterator[Group]:
    """Training in bfloat16 at sizes that fill an accelerator: rotary and LayerNorm, 2,048 tokens."""
    for name, (dim, depth) in GPU_SIZES.items():
        large = Options(
            dim=dim, depth=depth, heads=dim // 128, dim_head=128, attention=options.attention, memory=None
        )
        make = Maker(large, "training", GPU_LENGTH, options.gpu_batch)
        sides = (
            make.palm("torch", "rotary", "bfloat16", against=None),
            make.palm("jax", "rotary", "bfloat16", against="palm torch rotary, bf16"),
            make.peer("x-transformers", "rotary", "palm torch rotary, bf16", precision="bfloat16"),
        )
        yield Group("sizes", name, sides, alone=True)


CASES: dict[str, Callable[[Options], Iterator[Group]]] = {
    "limits": limits,
    "training": training,
    "forward": forward,
    "prefill": prefill,
    "decode": decode,
    "memory": memory,
    "compile": compilation,
    "sizes": sizes,
}


def groups(case: str, options: Options) -> Iterator[Group]:
    """The comparisons of a case, with only the sides asked for; limits stay with them."""
    for group in CASES[case](options):
        kept = [spec for spec in group.sides if _is_wanted(spec, options.sides)]
        if case == "limits" or any(spec["model"] != "limits" for spec in kept):
            yield Group(group.case, group.name, tuple(kept), group.alone)


def _is_wanted(spec: Spec, wanted: Sequence[str]) -> bool:
    return not wanted or spec["model"] == "limits" or any(part in spec["name"] for part in wanted)
