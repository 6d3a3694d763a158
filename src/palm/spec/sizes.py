"""What a config amounts to: parameters by kind, FLOPs per token, memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from palm.config import DType, PaLMConfig
from palm.fields import integer
from palm.memory import check_fits
from palm.spec.parameters import numpy_dtype, parameters

_SMALLER = "Use fewer layers, a smaller width or a smaller vocabulary."


@dataclass(frozen=True)
class Info:
    """Sizes of a resolved config.

    `parameters`: count by kind. FLOPs per token follow the paper's appendix B, with N all parameters,
    L blocks, H heads of width Q and T positions: forward 2N + 4LHQT, training 6N + 12LHQT. Memory is in
    bytes: of the weights, of the float32 training state (weights, gradients, two moments), and of the keys
    and values of one position.
    """

    parameters: dict[str, int]
    forward_flops: int
    training_flops: int
    weight_bytes: dict[str, int]
    training_bytes: int
    cache_bytes: int

    @property
    def total(self) -> int:
        """Number of parameters."""
        return sum(self.parameters.values())


def describe(config: PaLMConfig, length: int = 2048) -> Info:
    """The sizes of a resolved config at `length` positions. Raises `ConfigError` if it is not resolved."""
    length = integer("length", length, least=1)
    # All blocks are alike: one of them is enough, however deep the model is.
    one = parameters(replace(config, depth=1)).values()
    kinds = {p.kind: p.size * (config.depth if p.kind.startswith("blocks.") else 1) for p in one}
    total = sum(kinds.values())
    attention = config.depth * config.inner_dim * length
    cached = 1 if config.keys_are_values else 2
    return Info(
        parameters=kinds,
        forward_flops=2 * total + 4 * attention,
        training_flops=6 * total + 12 * attention,
        weight_bytes={"float32": 4 * total, "bfloat16": 2 * total},
        training_bytes=16 * total,
        cache_bytes=cached * config.depth * config.dim_head * 2,
    )


def check_model(config: PaLMConfig, dtype: DType) -> None:
    """Raise `ConfigError` if the weights of a resolved config do not fit into this machine's memory."""
    total = describe(config).total
    needed = total * numpy_dtype(dtype).itemsize
    check_fits(f"a model of {total:,} parameters in {dtype}", needed, _SMALLER)


def check_training(
    config: PaLMConfig, dtype: DType, *, batch: int, micro: int, length: int, copied: bool = False
) -> None:
    """Raise `ConfigError` if a training of a resolved config does not fit into this machine's memory.

    It has weights, gradients and two moments in `dtype`, a batch of ids, and the inputs of all blocks of a
    micro-batch, in at least two bytes each; and, if they are `copied` for a checkpoint that is written behind
    the steps, weights and moments once more.
    """
    total = describe(config).total
    state = (7 if copied else 4) * total * numpy_dtype(dtype).itemsize
    check_fits(f"the training of {total:,} parameters in {dtype}", state, _SMALLER)
    rows = 8 * batch * (length + 1) + 2 * micro * length * config.dim * config.depth
    fix = "Use a smaller batch or length, or more accumulate."
    check_fits(f"the training on {batch:,} × {length:,} tokens", state + rows, fix)


def check_cache(config: PaLMConfig, *, batch: int, length: int) -> None:
    """Raise `ConfigError` if keys and values of `batch` sequences do not fit into memory, in bfloat16."""
    needed = describe(config).cache_bytes * batch * length
    what = f"the keys and values of {batch:,} × {length:,} tokens"
    check_fits(what, needed, "Use a smaller length, or fewer sequences at once.")


def check_comparison(config: PaLMConfig, *, rows: int, sides: int) -> None:
    """Raise `ConfigError` if what a referee and `sides` complete recordings hold does not fit into memory.

    Weights and gradients of each in at least two bytes a number, and of the referee in float64; the values of
    all taps of `rows` tokens.
    """
    total = describe(config).total
    inner, e, d = config.inner_dim, config.dim_head, config.dim
    taps = rows * (config.depth * (4 * d + 2 * inner + 2 * e + config.ff_dim) + 2 * d + config.num_tokens)
    needed = (16 + 4 * sides) * total + (8 + 2 * sides) * taps
    what = f"a comparison of {total:,} parameters on {rows:,} tokens with the referee in float64"
    check_fits(what, needed, f"{_SMALLER} Or compare on fewer tokens: a smaller batch or length.")
