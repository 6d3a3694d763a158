"""What a job must cost at least: floating-point operations and bytes, from the config alone.

A product of an (m, k) and a (k, n) matrix is 2·m·k·n operations; the backward pass has two of each product.
Letters: L blocks, h heads, e dim_head, n tokens of a sequence.
"""

from __future__ import annotations

import math

from palm.config import PaLMConfig
from palm.spec.parameters import numpy_dtype, parameters


def matmul_parameters(config: PaLMConfig) -> int:
    """Parameters that a token is multiplied with: matrices, and the output layer, tied or not.

    Looking a row up in the embedding multiplies nothing; norm scales are no matrices.
    """
    table = parameters(config)
    blocks = sum(p.size for p in table.values() if len(p.shape) == 2 and p.name.startswith("blocks."))
    return blocks + config.num_tokens * config.dim


def forward_flops(config: PaLMConfig, batch: int, length: int) -> float:
    """Operations of one forward pass of (batch, length) tokens.

    Attention is counted causal: each of its two products has n²/2 scores a head, though some
    implementations compute n².
    """
    attention = 2 * 2 * (length**2 / 2) * config.inner_dim * config.depth
    return batch * (2 * matmul_parameters(config) * length + attention)


def training_flops(config: PaLMConfig, batch: int, length: int) -> float:
    """Operations of one forward and backward pass; what `remat` computes again is not counted."""
    return 3 * forward_flops(config, batch, length)


def weight_bytes(config: PaLMConfig, precision: str) -> int:
    """Bytes of the weights that each new token must read: `matmul_parameters`, in `precision`."""
    return matmul_parameters(config) * numpy_dtype(precision).itemsize


def cache_bytes(config: PaLMConfig, precision: str, batch: int, context: int) -> int:
    """Bytes of the cached keys and values of `context` positions; one tensor where keys are values."""
    tensors = 1 if config.share_kv and config.positions == "alibi" else 2
    return tensors * config.depth * batch * context * config.dim_head * numpy_dtype(precision).itemsize


def decode_bytes(config: PaLMConfig, precision: str, batch: int, context: int) -> int:
    """Bytes that must be read to take one more token into each of `batch` sequences."""
    return weight_bytes(config, precision) + cache_bytes(config, precision, batch, context)


def score_bytes(config: PaLMConfig, batch: int, length: int, *, training: bool) -> int:
    """Memory that written-out attention takes for its scores alone, in float32.

    It works with about four (n, n) arrays a head at a time; autograd keeps two of each block.
    """
    one = 4 * batch * config.heads * length**2
    return one * ((2 * config.depth if training else 0) + 4)


def mfu(config: PaLMConfig, batch: int, length: int, seconds: float, peak: float) -> float:
    """Model FLOPs utilisation of a training step (paper, appendix B): attention is counted whole there."""
    total = math.fsum(p.size for p in parameters(config).values())
    per_token = 6 * total + 12 * config.depth * config.inner_dim * length
    return batch * length * per_token / seconds / peak
