"""Attention a block of queries at a time, with its own backward pass.

Mirror: palm.torch_impl.paths.blockwise.
Letters: b batch, n sequence, m queries of a block, j keys it sees, h heads, e dim_head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from palm.jax_impl.linear import product
from palm.jax_impl.norm import widen
from palm.jax_impl.shapes import Keys, Queries, Segments, Slopes

BLOCK = 128
# The program of a block is compiled for so many numbers of keys at most: with more of them fewer masked keys
# are looked at, and compiling takes longer.
GROUPS = 16


def blockwise_attention(
    q: Queries, k: Keys, v: Keys, slopes: Slopes | None, segments: Segments | None = None
) -> Queries:
    """`textbook_attention` a block of queries at a time, each against only the keys it may see.

    There is one key head, so the heads of a block are rows of one matrix: scores are (m·h, e) (e, j), a plain
    product. The backward pass computes them again. Any device and dtype, first derivatives in reverse mode
    only; memory is linear in n. Shapes: q (..., n, h, e), k and v (..., n, e), slopes (h,), segments (..., n)
    -> (..., n, h, e).
    """
    folded = (q.reshape(-1, *q.shape[-3:]), k.reshape(-1, *k.shape[-2:]), v.reshape(-1, *v.shape[-2:]))
    of_rows = None if segments is None else jnp.broadcast_to(segments, q.shape[:-2]).reshape(-1, q.shape[-3])
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return _blockwise(*folded, slopes, of_rows, precision).reshape(q.shape)


# The rules are traced when the caller's `jax.default_matmul_precision` is over, so it is handed on to them.
@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _blockwise(
    q: Array, k: Array, v: Array, slopes: Array | None, segments: Array | None, precision: str | None
) -> Array:
    return _forward(q, k, v, slopes, segments, precision)[0]


def _forward(
    q: Array, k: Array, v: Array, slopes: Array | None, segments: Array | None, precision: str | None
) -> tuple[Array, tuple[Any, ...]]:
    with jax.default_matmul_precision(precision):
        out, log_sums = _each_sequence(partial(_attend, slopes), q, k, v, segments)
    return out, (q, k, v, slopes, segments, out, log_sums)


def _backward(
    precision: str | None, saved: tuple[Any, ...], grad: Array
) -> tuple[Array, Array, Array, Array | None, None]:
    q, k, v, slopes, segments, out, log_sums = saved
    # Of softmax's gradient w · (g − Σ w g), the sum: it is that of out · grad.
    means = (widen(out) * widen(grad)).sum(-1)
    with jax.default_matmul_precision(precision):
        grads = _each_sequence(partial(_gradients, slopes), q, k, v, segments, grad, means, log_sums)
    return *grads, None if slopes is None else jnp.zeros_like(slopes), None


_blockwise.defvjp(_forward, _backward)


def _attend(
    slopes: Array | None, q: Array, k: Array, v: Array, segments: Array | None
) -> tuple[Array, Array]:
    """Attention of one sequence, and log Σ exp(scores) by blocks. Shapes: q (n, h, e), k and v (n, e)."""
    n, h, _ = q.shape

    def attend(end: int, start: Array, queries: Array, own: Array | None) -> tuple[Array, Array]:
        scores = _scores(queries, keys[:end], slopes, start, h, own, theirs)
        largest = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = weights.sum(-1, keepdims=True)
        attended = product(weights.astype(q.dtype), values[:end]) / total
        return attended.astype(q.dtype), largest + jnp.log(total)

    keys, values, theirs = jax.tree.map(_padded, (k, v, segments))
    _, (out, log_sums) = lax.scan(
        lambda _, block: (None, _by_keys(attend, n, *block)),
        None,
        (_starts(n), *jax.tree.map(_split, (q, segments))),
    )
    return out.reshape(-1, *q.shape[1:])[:n], log_sums


def _gradients(
    slopes: Array | None,
    q: Array,
    k: Array,
    v: Array,
    segments: Array | None,
    grad: Array,
    means: Array,
    log_sums: Array,
) -> tuple[Array, Array, Array]:
    """Of one sequence, with respect to q, k and v."""
    (n, h, e), dtype = q.shape, q.dtype

    def gradients(
        end: int,
        start: Array,
        queries: Array,
        own: Array | None,
        ahead: Array,
        mean: Array,
        log_sum: Array,
    ) -> tuple[Array, Array, Array]:
        scores = _scores(queries, keys[:end], slopes, start, h, own, theirs)
        weights = jnp.exp(scores - log_sum)
        for_weights = product(ahead, values[:end], (1, 1))
        for_scores = (weights * (for_weights - mean) * e**-0.5).astype(dtype)
        # Transposed, because XLA is three times as quick with these products as with their transposes.
        later = ((0, 0), (0, len(keys) - end))
        for_k = jnp.pad(product(queries, for_scores, (0, 0)), later)
        for_v = jnp.pad(product(ahead, weights.astype(dtype), (0, 0)), later)
        return product(for_scores, keys[:end]).astype(dtype), for_k, for_v

    def step(total: tuple[Array, Array], block: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        for_q, for_k, for_v = _by_keys(gradients, n, *block)
        return (total[0] + for_k, total[1] + for_v), for_q

    keys, values, theirs = jax.tree.map(_padded, (k, v, segments))
    zeros = jnp.zeros_like(widen(keys.T))
    blocks = (_starts(n), *jax.tree.map(_split, (q, segments, grad, means[..., None])), log_sums)
    (for_k, for_v), for_q = lax.scan(step, (zeros, zeros), blocks)
    return (
        for_q.reshape(-1, *q.shape[1:])[:n],
        for_k[:, :n].T.astype(dtype),
        for_v[:, :n].T.astype(dtype),
    )


def _scores(
    queries: Array,
    keys: Array,
    slopes: Array | None,
    start: Array,
    h: int,
    own: Array | None,
    segments: Array | None,
) -> Array:
    """The scores of a block, −1e30 or less where a key is later or of another segment.

    Shapes: queries (m·h, e), keys (j, e), own (m,), segments (j and more,) -> (m·h, j).
    """
    # Or JAX would see that masks do not depend on the input, form those of all blocks beforehand and keep
    # them, n² numbers. That is also why they are formed by arithmetic, not by a choice among constants.
    queries, start = lax.optimization_barrier((queries, start))
    scores = product(queries, keys, (1, 1)) * queries.shape[1] ** -0.5
    distance = (start + jnp.arange(len(queries) // h))[:, None, None] - jnp.arange(len(keys))
    term = jnp.minimum(distance, 0).astype(scores.dtype) * 1e30
    if slopes is not None:
        term = term - slopes[:, None] * distance.astype(scores.dtype)
    if own is not None and segments is not None:
        apart = own[:, None, None] != segments[: len(keys)]
        term = term - apart.astype(scores.dtype) * 1e30
    return (scores.reshape(-1, h, len(keys)) + term).reshape(scores.shape)


def _each_sequence(function: Callable[..., Any], *arrays: Array | None) -> Any:
    # On a CPU one after the other: there, batched products are the slower ones.
    def in_turn(*arrays: Array | None) -> Any:
        return lax.map(lambda sequence: function(*sequence), arrays)

    return lax.platform_dependent(*arrays, cpu=in_turn, default=jax.vmap(function))


def _by_keys(function: Callable[..., Any], n: int, start: Array, *block: Array | None) -> Any:
    """`function(end, start, *block)`, with `end` the number of keys that the group of the block can see.

    A loop over blocks that branches into groups, and not one block written after the other: XLA would then
    compute all of their scores at once, and hold them all.
    """
    span = _group(n)
    branches = [partial(function, end) for end in range(span, n + span, span)]
    return lax.switch(start // span, branches, start, *block)


def _starts(n: int) -> Array:
    return jnp.arange(0, n, min(BLOCK, n))


def _group(n: int) -> int:
    """How many positions share a number of keys: whole blocks."""
    m = min(BLOCK, n)
    return -(-n // (m * GROUPS)) * m


def _split(x: Array) -> Array:
    """Shapes: (n, h, e) -> (blocks, m·h, e), or (n,) -> (blocks, m), with zeros after the end."""
    m = min(BLOCK, len(x))
    x = jnp.pad(x, ((0, -len(x) % m), *[(0, 0)] * (x.ndim - 1)))
    return x.reshape(-1, m) if x.ndim == 1 else x.reshape(-1, m * x.shape[1], x.shape[2])


def _padded(x: Array) -> Array:
    """Keys or values (n, e), or segments (n,), with zeros after the end, up to whole groups."""
    return jnp.pad(x, ((0, -len(x) % _group(len(x))), *[(0, 0)] * (x.ndim - 1)))
