"""The kernels of attention in Pallas for TPUs, ALiBi formed within them.

A program of the grid holds one block of queries of one head and one block of keys; the programs along the
last dimension follow one another and add up in fast memory. Blocks of keys after the queries are neither
fetched nor computed. Scores, weights and sums are float32, products take the operands' own dtype.
Letters: b batch, n sequence, h heads, e dim_head, m positions of a block, i and j block of queries, of keys.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

Shape = tuple[int, ...]


def attend(
    slopes: Array, q: Array, k: Array, v: Array, *, block: int, scale: float, interpret: bool
) -> tuple[Array, Array]:
    """Attention, and log Σ exp(scores) of each query.

    Shapes: slopes (h,), q (b, h, n, e), k and v (b, n, e) -> (b, h, n, e), (b, h, n, 1).
    """
    b, h, n, e = q.shape
    blocks = n // block
    queries, keys = _of_queries(block, e), _of_keys(block, e)
    call = pl.pallas_call(
        partial(_attend, scale=scale),
        grid=(b, h, blocks, blocks),
        in_specs=[_SLOPES, queries, keys, keys],
        out_specs=[queries, _of_queries(block, 1)],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((b, h, n, 1), jnp.float32)],
        **_scratch((block, 1), (block, 1), (block, e)),
        **_program("palm_mqa_fwd", 1, interpret),
    )
    return call(slopes, q, k, v)


def gradient_of_queries(slopes: Array, *arrays: Array, block: int, scale: float, interpret: bool) -> Array:
    """The gradient of q, of attention's own gradient g.

    Shapes: slopes (h,), q (b, h, n, e), k and v (b, n, e), g (b, h, n, e), log-sums and means Σ w g vᵀ
    (b, h, n, 1) -> (b, h, n, e).
    """
    b, h, n, e = arrays[0].shape
    blocks = n // block
    queries, keys, rows = _of_queries(block, e), _of_keys(block, e), _of_queries(block, 1)
    call = pl.pallas_call(
        partial(_gradient_of_queries, scale=scale),
        grid=(b, h, blocks, blocks),
        in_specs=[_SLOPES, queries, keys, keys, queries, rows, rows],
        out_specs=queries,
        out_shape=jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype),
        **_scratch((block, e)),
        **_program("palm_mqa_dq", 1, interpret),
    )
    return call(slopes, *arrays)


def gradients_of_keys(
    slopes: Array, *arrays: Array, block: int, scale: float, interpret: bool
) -> tuple[Array, Array]:
    """The gradients of k and v, added up over the heads.

    Shapes: as of `gradient_of_queries` -> two of (b, n, e).
    """
    q, k, v = arrays[:3]
    b, h, n, e = q.shape
    blocks = n // block
    queries, rows = (
        pl.BlockSpec((1, 1, block, width), lambda b, j, h, i: (b, h, jnp.maximum(i, j), 0))
        for width in (e, 1)
    )
    keys = pl.BlockSpec((1, block, e), lambda b, j, h, i: (b, j, 0))
    call = pl.pallas_call(
        partial(_gradients_of_keys, scale=scale),
        grid=(b, blocks, h, blocks),
        in_specs=[_SLOPES, queries, keys, keys, queries, rows, rows],
        out_specs=[keys, keys],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
        **_scratch((block, e), (block, e)),
        **_program("palm_mqa_dkv", 2, interpret),
    )
    return call(slopes, *arrays)


def _attend(
    slopes: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    log_sums: Any,
    largest: Any,
    total: Any,
    attended: Any,
    *,
    scale: float,
) -> None:
    slope, i, j = slopes[pl.program_id(1)], pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _() -> None:
        largest[...] = jnp.full_like(largest, -jnp.inf)
        total[...] = jnp.zeros_like(total)
        attended[...] = jnp.zeros_like(attended)

    @pl.when(j <= i)
    def _() -> None:
        scores = _scores(q, k, slope, i, j, scale)
        # Every query sees the first key: from the first block on the largest score is finite.
        found = jnp.maximum(largest[...], scores.max(-1, keepdims=True))
        weights, shrunk = jnp.exp(scores - found), jnp.exp(largest[...] - found)
        total[...] = total[...] * shrunk + weights.sum(-1, keepdims=True)
        attended[...] = attended[...] * shrunk + _product(weights.astype(v.dtype), v[0], (1, 0))
        largest[...] = found

    @pl.when(j == i)
    def _() -> None:
        out[0, 0] = (attended[...] / total[...]).astype(out.dtype)
        log_sums[0, 0] = largest[...] + jnp.log(total[...])


def _gradient_of_queries(
    slopes: Any,
    q: Any,
    k: Any,
    v: Any,
    g: Any,
    log_sums: Any,
    means: Any,
    out: Any,
    added: Any,
    *,
    scale: float,
) -> None:
    slope, i, j = slopes[pl.program_id(1)], pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _() -> None:
        added[...] = jnp.zeros_like(added)

    @pl.when(j <= i)
    def _() -> None:
        _, for_scores = _for_scores(q, k, v, g, log_sums, means, slope, i, j, scale)
        added[...] += _product(for_scores, k[0], (1, 0))

    @pl.when(j == i)
    def _() -> None:
        out[0, 0] = added[...].astype(out.dtype)


def _gradients_of_keys(
    slopes: Any,
    q: Any,
    k: Any,
    v: Any,
    g: Any,
    log_sums: Any,
    means: Any,
    for_k: Any,
    for_v: Any,
    added_k: Any,
    added_v: Any,
    *,
    scale: float,
) -> None:
    j, head, i = (pl.program_id(dimension) for dimension in (1, 2, 3))
    slope, first = slopes[head], (head == 0) & (i == 0)
    last = (head == pl.num_programs(2) - 1) & (i == pl.num_programs(3) - 1)

    @pl.when(first)
    def _() -> None:
        added_k[...] = jnp.zeros_like(added_k)
        added_v[...] = jnp.zeros_like(added_v)

    @pl.when(i >= j)
    def _() -> None:
        weights, for_scores = _for_scores(q, k, v, g, log_sums, means, slope, i, j, scale)
        added_v[...] += _product(weights, g[0, 0], (0, 0))
        added_k[...] += _product(for_scores, q[0, 0], (0, 0))

    @pl.when(last)
    def _() -> None:
        for_k[0] = added_k[...].astype(for_k.dtype)
        for_v[0] = added_v[...].astype(for_v.dtype)


def _scores(q: Any, k: Any, slope: Array, i: Array, j: Array, scale: float) -> Array:
    """Scaled scores less slope · distance, −inf for keys to come. Shape (m, m)."""
    scores = _product(q[0, 0], k[0], (1, 1)) * scale
    query, key = (lax.broadcasted_iota(jnp.int32, scores.shape, dimension) for dimension in (0, 1))
    distance = (i - j) * len(scores) + query - key
    return jnp.where(distance < 0, -jnp.inf, scores - slope * distance.astype(jnp.float32))


def _for_scores(
    q: Any, k: Any, v: Any, g: Any, log_sums: Any, means: Any, slope: Array, i: Array, j: Array, scale: float
) -> tuple[Array, Array]:
    """The weights w = exp(scores − log-sums), and the gradient of q kᵀ, w · (g vᵀ − Σ w g vᵀ) · scale."""
    weights = jnp.exp(_scores(q, k, slope, i, j, scale) - log_sums[0, 0])
    for_weights = _product(g[0, 0], v[0], (1, 1))
    for_scores = weights * (for_weights - means[0, 0]) * scale
    return weights.astype(q.dtype), for_scores.astype(q.dtype)


def _product(a: Array, b: Array, contracted: tuple[int, int]) -> Array:
    first, second = contracted
    return lax.dot_general(a, b, (((first,), (second,)), ((), ())), preferred_element_type=jnp.float32)


_SLOPES = pl.BlockSpec(memory_space=pltpu.SMEM)


def _of_queries(block: int, width: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, 1, block, width), lambda b, h, i, j: (b, h, i, 0))


def _of_keys(block: int, width: int) -> pl.BlockSpec:
    # The last block that is needed stays: it is not fetched again.
    return pl.BlockSpec((1, block, width), lambda b, h, i, j: (b, jnp.minimum(i, j), 0))


def _scratch(*shapes: Shape) -> dict[str, Any]:
    return {"scratch_shapes": [pltpu.VMEM(shape, jnp.float32) for shape in shapes]}


def _program(name: str, in_turn: int, interpret: bool) -> dict[str, Any]:
    """`in_turn`: how many of the grid's last dimensions follow one another."""
    order: Any = ("parallel",) * (4 - in_turn) + ("arbitrary",) * in_turn
    params = pltpu.CompilerParams(dimension_semantics=order)
    return {"name": name, "interpret": interpret, "compiler_params": params}
