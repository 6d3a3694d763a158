"""The constants of the two position schemes, in float64, shared by the referee and both wings."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from palm.errors import ConfigError


def alibi_slopes(heads: int) -> np.ndarray:
    """ALiBi's slope m_h of each head, steepest first within each series.

    For h a power of two: the geometric series with first term and ratio 2^(-8/h). Otherwise, with p the
    largest power of two below h: the p slopes of p heads, then the 1st, 3rd, 5th, … of 2p heads.
    Source: ALiBi (arXiv:2108.12409) §3. Shape: (heads,), float64.
    """
    return np.array(slope_list(heads))


def slope_list(heads: int) -> list[float]:
    """`alibi_slopes` as plain numbers, which torch.compile can trace."""
    power = 1 << (heads.bit_length() - 1)
    return _geometric(power) + _geometric(2 * power)[::2][: heads - power]


def _geometric(heads: int) -> list[float]:
    return [2.0 ** (-8.0 / heads * k) for k in range(1, heads + 1)]


@lru_cache(maxsize=8)
def rotary_table(length: int, dim_head: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of the rotary angles i·θ^(-2p/e) for positions i and pairs p.

    Formed in float64: a float32 angle of 2,000 radians is already off by 1e-4.
    Source: RoFormer (arXiv:2104.09864) §3.2.2. Shapes: two of (length, dim_head/2), float64, read-only.
    Raises `ConfigError` if `dim_head` is odd.
    """
    if dim_head % 2:
        raise ConfigError(
            f"dim_head must be even because rotary rotates pairs; got dim_head={dim_head}. Use an even one."
        )
    frequencies = theta ** (-np.arange(0, dim_head, 2) / dim_head)
    angles = np.outer(np.arange(length), frequencies)
    table = np.cos(angles), np.sin(angles)
    for array in table:
        array.flags.writeable = False
    return table
