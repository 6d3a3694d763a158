"""The constants of the position schemes, in float64, shared by the referee and both wings."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from palm.errors import ConfigError, TokenError

# Of xPos: 3.5^48 = 1.3e26 leaves float32, whose range bfloat16 shares, room for values and gradients.
_BASES = 48


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


@lru_cache(maxsize=8)
def xpos_table(length: int, dim_head: int, base: float) -> np.ndarray:
    """xPos's factor s_p^(i / base) on the queries of position i; keys are divided by that of theirs.

    s_p = (2p + 0.4e) / 1.4e for pair p. A score thus has s_p^((i − j) / base) on what pair p adds to it. Any
    other centre c, in s_p^((i − c) / base) and s_p^(−(j − c) / base), cancels. Position 0 is palm's: it does
    not move as a sequence grows, and factors are near 1 in short sequences. In 8,192 positions they reach
    2e-9 and 5e8, of which floating-point numbers keep all digits.
    Source: xPos (arXiv:2212.10554) §2.2. Shape: (length, dim_head/2), float64, read-only.
    Raises `TokenError` as `check_xpos` does.
    """
    check_xpos(length, base)
    pairs = (np.arange(0, dim_head, 2) + 0.4 * dim_head) / (1.4 * dim_head)
    table = pairs ** (np.arange(length)[:, None] / base)
    table.flags.writeable = False
    return np.asarray(table)


def most_positions(base: float) -> int:
    """How many positions the range of float32 and bfloat16 has factors of xPos for."""
    return int(_BASES * base)


def check_xpos(length: int, base: float) -> None:
    """Raise `TokenError` for more than `most_positions`."""
    if length > most_positions(base):
        raise TokenError(
            f"tokens must have at most {_BASES}·xpos_base = {_BASES * base:g} positions with xPos, whose "
            f"factors would leave the range of float32; got n={length}. Pass shorter sequences."
        )
