"""The referee's loss and its gradients by the chain rule, in NumPy float64.

The mirror of `palm.spec.forward`: every function here is the transpose of its namesake there, so that
gradients, too, have a referee that belongs to neither framework. `d_x` is the gradient of the loss with
respect to x.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Inexact, Integer

from palm.config import PaLMConfig
from palm.spec.arrays import Named
from palm.spec.forward import run
from palm.spec.functions import merge_heads, output_matrix, position_bias, softmax, split_heads, stretch
from palm.spec.parameters import checked_weights
from palm.spec.positions import rotary_table
from palm.spec.taps import Tap, untapped
from palm.spec.tokens import IGNORED, check_tokens, checked_beside, next_targets

Gradients = dict[str, np.ndarray]


def value_and_grad(
    config: PaLMConfig,
    weights: Named,
    tokens: np.ndarray,
    *,
    segments: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    keeps_shift: bool = True,
    tap: Tap = untapped,
) -> tuple[float, Gradients]:
    """Mean next-token cross-entropy in nats, and its gradient for every parameter.

    loss = mean over (..., i < n−1) of log Σ_v exp(logits_i) − logits_i[token_{i+1}]; with `segments` or
    `labels`, of `next_targets` those that are not ignored.
    `keeps_shift`: see `cross_entropy`. `tap` gets the gradient of each block's output, `blocks.{i}.out`, from
    the last block on. Raises what `forward.activations` raises, and `TokenError` if n < 2.
    """
    tokens = check_tokens(tokens, config, at_least=2)
    segments, labels = (checked_beside(array, tokens.shape) for array in (segments, labels))
    targets = next_targets(tokens, segments, labels).reshape(-1, tokens.shape[-1] - 1)
    segments = None if segments is None else segments.reshape(-1, tokens.shape[-1])
    tokens = tokens.reshape(-1, tokens.shape[-1])
    weights = checked_weights(config, weights)
    taps = run(config, weights, tokens, segments=segments)
    loss, d_logits = cross_entropy(taps["logits"], targets, keeps_shift=keeps_shift)

    d_logits = d_logits * config.logit_scale
    d_output = _outer(taps["norm"], d_logits)
    d_norm = d_logits @ output_matrix(config, weights).T
    last = taps[f"blocks.{config.depth - 1}.out"]
    grads: Gradients = {}
    d_x, grads["norm"] = normalise(d_norm, last, weights["norm"], config)
    for i in reversed(range(config.depth)):
        x = taps[f"blocks.{i - 1}.out"] if i else taps["embed"]
        d_out = tap(f"blocks.{i}.out", d_x)
        d_x, of_block = block(d_out, x, block_arrays(taps, i), block_arrays(weights, i), config, segments)
        grads.update({f"blocks.{i}.{name}": gradient for name, gradient in of_block.items()})

    grads["embedding"] = np.zeros_like(weights["embedding"])
    np.add.at(grads["embedding"], tokens, d_x)
    if config.tie_embeddings:
        grads["embedding"] += d_output.T
    else:
        grads["unembedding"] = d_output
    return loss, {name: grads[name] for name in weights}


def cross_entropy(
    logits: Inexact[np.ndarray, "b n v"], targets: Integer[np.ndarray, "b m"], *, keeps_shift: bool = True
) -> tuple[float, Inexact[np.ndarray, "b n v"]]:
    """Mean loss of the first m = n − 1 logits of each row, over targets that are not ignored, and d_logits.

    `keeps_shift`: log Σ exp stays relative to the largest logit. Programs that add that back are as right,
    but round to its size, in all probabilities of a row alike.
    """
    predictions, counted = logits[:, :-1], targets != IGNORED
    chosen, count = np.where(counted, targets, 0)[..., None], max(counted.sum(), 1)
    shifted = predictions - predictions.max(-1, keepdims=True)
    log_z = np.log(np.exp(shifted).sum(-1, keepdims=True))
    if not keeps_shift:
        shifted, log_z = predictions, predictions.max(-1, keepdims=True) + log_z
    losses = (log_z - np.take_along_axis(shifted, chosen, -1))[..., 0]
    loss = float(losses[counted].sum() / count)
    d_logits = np.zeros_like(logits)
    d_logits[:, :-1] = np.exp(shifted - log_z)
    hit = np.take_along_axis(d_logits[:, :-1], chosen, -1)
    np.put_along_axis(d_logits[:, :-1], chosen, hit - 1, -1)
    d_logits[:, :-1] *= counted[..., None]
    return loss, d_logits / count


def block(
    d_out: Inexact[np.ndarray, "b n d"],
    x: Inexact[np.ndarray, "b n d"],
    taps: Named,
    weights: Named,
    config: PaLMConfig,
    segments: np.ndarray | None = None,
) -> tuple[Inexact[np.ndarray, "b n d"], Gradients]:
    """d_x and the gradients of one block's weights, under their names inside the block."""
    y = taps["norm"]
    d_y_attention, grads = attention(d_out, y, taps, weights, config, segments)
    d_y_feedforward, of_feedforward = feedforward(d_out, y, taps, weights)
    d_x, of_norm = normalise(d_y_attention + d_y_feedforward, x, weights["norm"], config)
    return d_out + d_x, {"norm": of_norm, **grads, **of_feedforward}


def normalise(
    d_y: Inexact[np.ndarray, "b n d"],
    x: Inexact[np.ndarray, "b n d"],
    scale: Inexact[np.ndarray, "d"],
    config: PaLMConfig,
) -> tuple[Inexact[np.ndarray, "b n d"], Inexact[np.ndarray, "d"]]:
    """With y = x / r · g: d_x = u/r − x·mean(u·x)/r³, u = d_y·g; where the clamp acts, r is constant."""
    if config.norm == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    mean_square = (x**2).mean(-1, keepdims=True)
    if config.norm_eps_mode == "clamp":
        root = np.maximum(np.sqrt(mean_square), config.eps)
        moves = np.sqrt(mean_square) > config.eps
    else:
        root, moves = np.sqrt(mean_square + config.eps), True
    u = d_y * scale
    d_x = u / root - moves * x * (u * x).mean(-1, keepdims=True) / root**3
    if config.norm == "layernorm":
        d_x = d_x - d_x.mean(-1, keepdims=True)
    return d_x, (d_y * x / root).sum((0, 1))


def attention(
    d_out: Inexact[np.ndarray, "b n d"],
    y: Inexact[np.ndarray, "b n d"],
    taps: Named,
    weights: Named,
    config: PaLMConfig,
    segments: np.ndarray | None = None,
) -> tuple[Inexact[np.ndarray, "b n d"], Gradients]:
    """Back through output matrix, weighted sum, softmax, scores, rotation, norms and projections."""
    q, k, v = split_heads(taps["q"], config), taps["k"][:, None], taps["v"][:, None]
    scale = config.dim_head**-0.5
    scores = (q * scale) @ k.swapaxes(-1, -2) + position_bias(y.shape[-2], config, segments)
    weighting = softmax(scores)
    d_attended = split_heads(d_out @ weights["attention.out"].T, config)
    d_v = (weighting.swapaxes(-1, -2) @ d_attended).sum(1)
    d_weighting = d_attended @ v.swapaxes(-1, -2)
    d_scores = weighting * (d_weighting - (d_weighting * weighting).sum(-1, keepdims=True))
    d_q = d_scores @ k * scale
    d_k = (d_scores.swapaxes(-1, -2) @ q).sum(1) * scale
    if config.rotates:
        d_q, d_k = unrotate(d_q, config, keys=False), unrotate(d_k, config, keys=True)
    of_norms: Gradients = {}
    if config.qk_norm:
        key = weights["attention.key_value" if config.share_kv else "attention.key"]
        x_q, x_k = split_heads(y @ weights["attention.query"], config), y @ key
        d_q, of_norms["attention.query_norm"] = unit(d_q, x_q, weights["attention.query_norm"])
        d_k, of_norms["attention.key_norm"] = unit(d_k, x_k, weights["attention.key_norm"])
    d_projections = {"attention.query": merge_heads(d_q)}
    if config.share_kv:
        d_projections["attention.key_value"] = d_k + d_v
    else:
        d_projections |= {"attention.key": d_k, "attention.value": d_v}
    d_y = sum(d @ weights[name].T for name, d in d_projections.items())
    grads = {name: _outer(y, d) for name, d in d_projections.items()}
    return np.asanyarray(d_y), grads | of_norms | {"attention.out": _outer(taps["attention"], d_out)}


def unit(
    d_y: Inexact[np.ndarray, "... e"], x: Inexact[np.ndarray, "... e"], scale: Inexact[np.ndarray, "e"]
) -> tuple[Inexact[np.ndarray, "... e"], Inexact[np.ndarray, "e"]]:
    """With y = x / r · g, r = ‖x‖: d_x = (u − x·Σ(u·x)/r²) / r, u = d_y·g; below 1e-12, r is constant."""
    length = np.sqrt((x**2).sum(-1, keepdims=True))
    r = np.maximum(length, 1e-12)
    u = d_y * scale
    d_x = (u - (length > 1e-12) * x * (u * x).sum(-1, keepdims=True) / r**2) / r
    return d_x, (d_y * x / r).reshape(-1, len(scale)).sum(0)


def unrotate(
    x: Inexact[np.ndarray, "... n e"], config: PaLMConfig, *, keys: bool
) -> Inexact[np.ndarray, "... n e"]:
    """Rotate each pair back: the transpose of a rotation is its inverse, that of factors themselves."""
    x = x * stretch(x.shape[-2], config, keys=keys)
    cos, sin = rotary_table(x.shape[-2], config.dim_head, config.rope_theta)
    a, b = x[..., 0::2], x[..., 1::2]
    return np.stack([a * cos + b * sin, b * cos - a * sin], axis=-1).reshape(x.shape)


def feedforward(
    d_out: Inexact[np.ndarray, "b n d"], y: Inexact[np.ndarray, "b n d"], taps: Named, weights: Named
) -> tuple[Inexact[np.ndarray, "b n d"], Gradients]:
    """swish'(x) = σ(x)·(1 + x·(1 − σ(x)))."""
    gate, up = y @ weights["feedforward.gate"], y @ weights["feedforward.up"]
    with np.errstate(over="ignore"):  # where e^-x is infinite, the quotient is rightly 0
        sigmoid = 1 / (1 + np.exp(-gate))
    d_gated = d_out @ weights["feedforward.down"].T
    d_gate = d_gated * up * sigmoid * (1 + gate * (1 - sigmoid))
    d_up = d_gated * gate * sigmoid
    d_y = d_gate @ weights["feedforward.gate"].T + d_up @ weights["feedforward.up"].T
    return d_y, {
        "feedforward.up": _outer(y, d_up),
        "feedforward.gate": _outer(y, d_gate),
        "feedforward.down": _outer(taps["feedforward"], d_out),
    }


def _outer(inputs: np.ndarray, d_outputs: np.ndarray) -> np.ndarray:
    """Gradient of a matrix: inputs^T d_outputs, summed over batch and positions."""
    return inputs.reshape(-1, inputs.shape[-1]).T @ d_outputs.reshape(-1, d_outputs.shape[-1])


def block_arrays(arrays: Named, i: int) -> dict[str, np.ndarray]:
    """The weights or taps of block i under their names inside the block."""
    prefix = f"blocks.{i}."
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
