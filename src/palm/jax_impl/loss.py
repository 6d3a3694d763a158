"""The training loss of the JAX wing.

Letters: n sequence, d dim, r rows (all positions of all sequences), v num_tokens.
Mirror: palm.torch_impl.loss.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.nn import logsumexp

from palm.jax_impl.linear import linear
from palm.jax_impl.norm import widen
from palm.jax_impl.shapes import Features, Logits, Output, Scalar, Scores, Segments, Targets, Tokens
from palm.jax_impl.sharding import averaged, in_columns, laid, ways
from palm.spec.tokens import IGNORED

# More logits than this, 128 MiB in float32, no device ever holds at once while training.
MOST_LOGITS = 1 << 25


def next_token_loss(
    logits: Logits, tokens: Tokens, segments: Segments | None = None, labels: Tokens | None = None
) -> Scalar:
    """Mean cross-entropy of each next token, in nats, in float32 or wider.

    mean over (..., i < n−1) of log Σ_v exp(logits_i) − logits_i[token_{i+1}]. With `labels` these are
    predicted in place of the tokens. A label of −100 does not count, nor does a token of another segment.
    Shapes: logits (..., n, v), tokens, segments and labels (..., n) -> ().
    """
    if segments is None and labels is None:
        return cross_entropy(logits[..., :-1, :], tokens[..., 1:])[0]
    targets = next_targets(tokens if labels is None else labels, segments)
    loss, _ = cross_entropy(logits[..., :-1, :], targets, masked=True)
    return loss * per_counted(targets, loss)


def segments_of(tokens: Tokens, end: int) -> Segments:
    """The number of each token's document, where each ends with the id `end`.

    Shapes: (..., n) -> (..., n).
    """
    ends = (tokens == end).astype(jnp.int32)
    return jnp.cumsum(ends, -1) - ends


def next_targets(labels: Tokens, segments: Segments | None) -> Tokens:
    """What each position but the last predicts; `IGNORED` where that is of another segment.

    Shapes: two of (..., n) -> (..., n − 1).
    """
    if segments is None:
        return labels[..., 1:]
    return jnp.where(segments[..., 1:] == segments[..., :-1], labels[..., 1:], IGNORED)


def packed(windows: Tokens, end: int | None) -> tuple[Segments | None, Targets]:
    """The segments of windows of training, and what each position predicts. Without `end`, no segments.

    Shapes: (..., n + 1) -> (..., n), (..., n).
    """
    if end is None:
        return None, windows[..., 1:]
    segments = segments_of(windows, end)
    return segments[..., :-1], next_targets(windows, segments)


def per_counted(targets: Targets, like: Scalar) -> Scalar:
    """What a mean over all targets is multiplied by to be one over those that count.

    Shapes: (...) -> (), in the dtype of `like`.
    """
    counted = targets != IGNORED
    return targets.size / jnp.maximum(counted.sum(), 1).astype(like.dtype)


def cross_entropy(logits: Scores, targets: Targets, *, masked: bool = False) -> tuple[Scalar, Scalar]:
    """Mean cross-entropy in nats, and the mean of log²Z that the z-loss weighs, in float32 or wider.

    With log Z = log Σ_v exp(logits): mean of log Z − logits[target]; mean of (log Z)². If `masked`, targets
    may be −100; both are 0 there, and the means are still over all (`per_counted`).
    Source: PaLM (arXiv:2204.02311) §5, "Loss function". Shapes: logits (..., v), targets (...) -> (), ().
    """
    losses, log_z = _losses(logits, targets, logits.shape[-1], masked)
    return losses.mean(), jnp.square(log_z).mean()


def output_loss(
    features: Features,
    weight: Output,
    targets: Targets,
    *,
    scale: float,
    z_loss: float,
    per_counted: Scalar | None = None,
) -> tuple[Scalar, Scalar]:
    """`cross_entropy` of the logits scale · features weight: what is minimised, cross-entropy + z_loss · z,
    and the cross-entropy in it, which carries no gradient of its own.

    Where there are many logits they are formed a part of the rows at a time, together with their gradient, so
    that (b, n, v) of them never exist; then there are first derivatives in reverse mode only. With
    `per_counted` targets may be −100, and it multiplies both results.
    Shapes: features (..., d), weight (d, v), targets (...) -> (), ().
    """
    settings = _Settings(weight.shape[1], scale, z_loss, per_counted is not None)
    found = averaged(partial(_mean_loss, settings), features, weight, targets)
    return found if per_counted is None else (found[0] * per_counted, found[1] * per_counted)


class _Settings(NamedTuple):
    """The size of the vocabulary, beyond which a weight on a mesh may have columns, two factors, and whether
    targets may be ignored."""

    num_tokens: int
    scale: float
    z_loss: float
    masked: bool


def _mean_loss(settings: _Settings, features: Array, weight: Array, targets: Array) -> tuple[Array, Array]:
    rows, targets, weight = features.reshape(-1, features.shape[-1]), targets.reshape(-1), in_columns(weight)
    if len(rows) * _held(weight) > MOST_LOGITS:
        return _in_parts(settings, rows, weight, targets)
    losses, log_z = _losses(_logits(rows, weight, settings), targets, settings.num_tokens, settings.masked)
    loss, z = losses.mean(), jnp.square(log_z).mean()
    return loss + settings.z_loss * z, lax.stop_gradient(loss)


def _logits(rows: Array, weight: Array, settings: _Settings) -> Array:
    return laid(linear(rows, weight) * settings.scale, "model")


def _losses(logits: Array, targets: Array, num_tokens: int, masked: bool) -> tuple[Array, Array]:
    wide = widen(logits)
    if wide.shape[-1] > num_tokens:
        wide = jnp.where(jnp.arange(wide.shape[-1]) < num_tokens, wide, -jnp.inf)
    log_z = logsumexp(wide, axis=-1)
    losses = log_z - _of_target(wide, jnp.maximum(targets, 0) if masked else targets)
    if masked:
        losses, log_z = (jnp.where(targets == IGNORED, 0, x) for x in (losses, log_z))
    return losses, log_z


def _of_target(logits: Array, targets: Array) -> Array:
    if ways(logits) == 1:
        return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    # No device has all logits of a row to choose from.
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    return jnp.where(is_target, logits, 0).sum(-1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_parts(settings: _Settings, rows: Array, weight: Array, targets: Array) -> tuple[Array, Array]:
    def step(total: tuple[Array, Array], part: tuple[Array, ...]) -> tuple[tuple[Array, Array], None]:
        objective, loss = _part(weight, *part, settings=settings)
        return (total[0] + objective, total[1] + loss), None

    zero = jnp.zeros((), widen(rows[:0]).dtype)
    return lax.scan(step, (zero, zero), _split(rows, targets, _held(weight)))[0]


def _forward(
    settings: _Settings, rows: Array, weight: Array, targets: Array
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    gradient = jax.value_and_grad(_part, argnums=(0, 1), has_aux=True)

    def step(
        total: tuple[Array, Array, Array], part: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array, Array], Array]:
        (objective, loss), (for_weight, for_rows) = gradient(weight, *part, settings=settings)
        return (total[0] + objective, total[1] + loss, total[2] + for_weight), for_rows

    zero = jnp.zeros((), widen(rows[:0]).dtype)
    start = (zero, zero, laid(jnp.zeros_like(widen(weight)), "model"))
    (objective, loss, for_weight), for_rows = lax.scan(step, start, _split(rows, targets, _held(weight)))
    grads = (for_rows.reshape(-1, rows.shape[1])[: len(rows)], for_weight.astype(weight.dtype))
    return (objective, loss), grads


def _backward(
    settings: _Settings, saved: tuple[Array, Array], grads: tuple[Array, Array]
) -> tuple[Array, Array, None]:
    for_rows, for_weight = saved
    return for_rows * grads[0].astype(for_rows.dtype), for_weight * grads[0].astype(for_weight.dtype), None


_in_parts.defvjp(_forward, _backward)


def _part(
    weight: Array, rows: Array, targets: Array, share: Array, *, settings: _Settings
) -> tuple[Array, Array]:
    """Of some rows, each of which is `share` of the mean: their part of objective and cross-entropy."""
    losses, log_z = _losses(_logits(rows, weight, settings), targets, settings.num_tokens, settings.masked)
    return (share * (losses + settings.z_loss * jnp.square(log_z))).sum(), (share * losses).sum()


def _held(weight: Array) -> int:
    """The columns of the weight that each device holds."""
    return weight.shape[1] // ways(weight)


def _split(rows: Array, targets: Array, held: int) -> Any:
    """Parts of one size, filled up with rows of no share."""
    count = -(-len(rows) // max(1, MOST_LOGITS // held))
    size = -(-len(rows) // count)
    share = jnp.full(len(rows), 1 / len(rows), widen(rows[:0]).dtype)

    def parts(x: Array) -> Array:
        filled = jnp.pad(x, ((0, count * size - len(x)), *[(0, 0)] * (x.ndim - 1)))
        return filled.reshape(count, size, *x.shape[1:])

    return parts(rows), parts(targets), parts(share)
