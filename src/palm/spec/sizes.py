"""What a config amounts to: parameters by kind, FLOPs per token, memory."""

from __future__ import annotations

from dataclasses import dataclass

from palm.config import PaLMConfig
from palm.spec.parameters import parameters


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
    """The sizes of a resolved config. Raises `ConfigError` if it is not resolved."""
    kinds: dict[str, int] = {}
    for parameter in parameters(config).values():
        kinds[parameter.kind] = kinds.get(parameter.kind, 0) + parameter.size
    total = sum(kinds.values())
    attention = config.depth * config.inner_dim * length
    # Rotary turns keys but not values, so a shared tensor is cached once only under ALiBi.
    cached = 1 if config.share_kv and config.positions == "alibi" else 2
    return Info(
        parameters=kinds,
        forward_flops=2 * total + 4 * attention,
        training_flops=6 * total + 12 * attention,
        weight_bytes={"float32": 4 * total, "bfloat16": 2 * total},
        training_bytes=16 * total,
        cache_bytes=cached * config.depth * config.dim_head * 2,
    )
