"""Rounding is the yardstick: how far apart two honest sides may be, and how wrong one may be.

Two tests, and neither can stand in for the other:

**Ratio.** With a, b the two sides in working precision and a*, b* the same two programs run in float64 on the
same weights,

    ratio = rms(a − b) / sqrt(rms(a − a*)² + rms(b − b*)²).

If both compute the same function, a* = b*, and the triangle inequality gives ratio ≤ √2 whatever the
rounding errors are; independent errors give about 1. A ratio above 1.5 therefore *proves* that the two are
different functions, and no number of runs can give a false alarm. (Measured against one common r instead of
each side's own float64, the ratio could not exceed √2 even for a wrong side: it could not fail.)

**Bound.** A side whose program loses precision (positions in bfloat16, TF32 matmuls) has a large own
rounding error, which the ratio forgives. So each side's error against the float64 referee must also stay
inside `rounding_bound`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import ml_dtypes
import numpy as np

from palm.config import DType, PaLMConfig

RATIO_BAR = 1.5
UNIT_ROUNDOFF: dict[DType, float] = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8}

# Values stored in working precision on the longest path through a block: norm, gate, its swish, the product,
# down, and the two residual sums; and the position step or the softmax beside them.
_ROUNDINGS = 8
# Norms, softmax and matmuls of rounded values amplify what they receive; measured factors stay below 2.
_AMPLIFICATION = 2.0


def coarsest(dtypes: Iterable[DType]) -> DType:
    """The dtype with the largest unit roundoff."""
    return max(dtypes, key=lambda dtype: UNIT_ROUNDOFF[dtype])


def unit_roundoff(dtype: str) -> float:
    """Half the distance from 1 to the next number, of any floating-point dtype: 2^-11 for float16."""
    return float(ml_dtypes.finfo(dtype).eps) / 2


def rms(x: np.ndarray) -> float:
    """Root mean square over all elements, formed in float64."""
    wide = np.asarray(x, np.float64)
    return float(np.sqrt(np.mean(np.square(wide)))) if wide.size else 0.0


def rounding_ratio(cross: float, own_a: float, own_b: float) -> float:
    """cross / sqrt(own_a² + own_b²); 0 if the sides are equal, infinite if they differ without rounding."""
    if cross == 0.0:
        return 0.0
    floor = math.hypot(own_a, own_b)
    return cross / floor if floor > 0.0 else math.inf


def rounding_bound(config: PaLMConfig, dtype: DType, tokens: int, blocks: int) -> float:
    """Largest relative rms error that rounding explains after `blocks` blocks.

        2 · sqrt((blocks + 1) · (8·u² + K·w²))

    for the roundings of `block_rounding` in each block, which are independent and add in quadrature. What a
    function amplifies beyond the factor 2, `palm.parity.judge.conditioning` finds out from the values.
    """
    return _AMPLIFICATION * math.sqrt(blocks + 1) * block_rounding(config, dtype, tokens)


def loss_resolution(dtype: str, loss: float, num_tokens: int, terms: int) -> float:
    """Two losses of `loss` nats that are closer than this may be one number, summed in another order.

        2 · u · (log₂ num_tokens + (2 + log₂ terms) · loss)

    A loss log Z − logit in `dtype`, of unit roundoff u: the sum in Z over the vocabulary, by pairs, and what
    rounds log Z and the difference; then the mean over `terms` losses, by pairs. What rounding does to the
    logits, and training makes of it, is not in it: that is more. Each of two losses may be off by half of it.
    Source: Higham, "Accuracy and Stability of Numerical Algorithms" (2002), §4.2.
    """
    return 2 * unit_roundoff(dtype) * (math.log2(num_tokens) + (2 + math.log2(terms)) * abs(loss))


def block_rounding(config: PaLMConfig, dtype: DType, tokens: int) -> float:
    """Relative rms error that one block adds by rounding: sqrt(8·u² + K·w²).

    u is the unit roundoff of `dtype`, w that of the accumulator (float32 for bfloat16), K the summed lengths
    of a block's dot products, d + h·e + e + f + `tokens`: for a tap the positions attended over, for a
    gradient all positions and the vocabulary, over which it sums. Stored values contribute u each, a sum of
    K terms w·sqrt(K).
    Source: Higham & Mary, "A new approach to probabilistic rounding error analysis" (2019), §3.
    """
    unit = UNIT_ROUNDOFF[dtype]
    accumulator = min(unit, UNIT_ROUNDOFF["float32"])
    terms = config.dim + config.inner_dim + config.dim_head + config.ff_dim + tokens
    return math.sqrt(_ROUNDINGS * unit**2 + terms * accumulator**2)
