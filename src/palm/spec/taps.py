"""The names of the taps: the values inside a forward pass that the referee and both wings expose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Called with the name and the value of each tap; what it returns stands for the value from there on.
Tap = Callable[[str, Any], Any]

# In dataflow order: a fault shows first at the tap it sits in. Dicts that pass through JAX come back sorted.
BLOCK_TAPS = (
    "norm",
    "q",
    "k",
    "v",
    "attention",
    "attention_out",
    "feedforward",
    "feedforward_out",
    "out",
)


def untapped(name: str, value: Any) -> Any:
    """The tap that leaves every value as it is."""
    return value


def tap_names(depth: int) -> tuple[str, ...]:
    """Every tap of a model of `depth` blocks, in dataflow order."""
    blocks = (f"blocks.{i}.{name}" for i in range(depth) for name in BLOCK_TAPS)
    return ("embed", *blocks, "norm", "logits")


def kind_of(tap: str) -> str:
    """The tap's name without its block: that of the operation that computes it."""
    return tap.rpartition(".")[2]


def tap_of(weight: str) -> str:
    """The first tap that a weight acts on. Raises `KeyError` for what is no weight."""
    kinds = {
        "embedding": "embed",
        "unembedding": "logits",
        "attention.query": "q",
        "attention.key": "k",
        "attention.key_value": "k",
        "attention.value": "v",
        "attention.out": "attention_out",
        "feedforward.up": "feedforward",
        "feedforward.gate": "feedforward",
        "feedforward.down": "feedforward_out",
        "norm": "norm",
    }
    prefix = ".".join(weight.split(".")[:2]) + "." if weight.startswith("blocks.") else ""
    return prefix + kinds[weight.removeprefix(prefix)]
