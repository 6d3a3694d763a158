"""The names of the taps: the values inside a forward pass that all three readings expose."""

from __future__ import annotations

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


def tap_names(depth: int) -> tuple[str, ...]:
    """Every tap of a model of `depth` blocks, in dataflow order."""
    blocks = (f"blocks.{i}.{name}" for i in range(depth) for name in BLOCK_TAPS)
    return ("embed", *blocks, "norm", "logits")
