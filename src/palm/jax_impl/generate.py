"""Cached decoding of the JAX wing. Mirror: palm.torch_impl.generate.

Letters: l layers, b batch, n cached positions, d dim, h heads, e dim_head, v num_tokens.
"""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from palm.jax_impl.block import Block
from palm.jax_impl.model import PaLM, full_precision
from palm.jax_impl.norm import widen
from palm.sampling import Sampling

# The residual stream, and the caches of all layers.
Carry = tuple[Array, Array, Array | None]


class _State(eqx.Module):
    """What decoding carries: caches (l, b, n, e), lengths (b,), and logits (b, v) of the next token."""

    keys: Array
    values: Array | None
    lengths: Array
    logits: Array


class Decoder:
    """A batch of sequences that grow by one token at a time, with the keys and values of the earlier ones.

    The cache has one key head and one value head: it is h times smaller than multi-head attention's, and
    half of that where keys are values (`share_kv` with ALiBi). Shapes are static: (l, b, n, e) with room for
    `size` positions, so that each step is the same compiled program. Source: Shazeer (arXiv:1911.02150).
    """

    def __init__(self, model: PaLM, prompts: np.ndarray, lengths: np.ndarray, size: int) -> None:
        """Run the prompts (b, p), padded at their ends; sequence r has `lengths[r]` tokens."""
        self.model = model
        tokens = jax.device_put(prompts.astype(np.int32), model.embedding.sharding)
        self._state = _prefill(model, tokens, jnp.asarray(lengths, jnp.int32), size)

    @property
    def logits(self) -> Array:
        """Of each sequence's next token. Shape (b, v)."""
        return self._state.logits

    def next(self, noise: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
        """Choose each sequence's next token and take it in.

        Log-probabilities are the model's own, in nats: of no temperature, before anything is left out.
        Shapes: noise (b, v) -> ids (b,), log-probabilities (b,).
        """
        gumbel = noise.astype(widen(self.logits).dtype)
        self._state, tokens, logprobs = _next((self.model, gumbel, sampling), self._state)
        return np.asarray(tokens), np.asarray(logprobs)

    def feed(self, tokens: np.ndarray) -> None:
        """Take in given tokens (b,) instead of chosen ones."""
        self._state = _feed((self.model, tokens.astype(np.int32)), self._state)


@eqx.filter_jit
def _prefill(model: PaLM, tokens: Array, lengths: Array, size: int) -> _State:
    def step(x: Array, block: Block) -> tuple[Array, tuple[Array, Array | None]]:
        taps = block.activations(x, rotation, slopes)
        return taps["out"], (taps["k"], None if one else taps["v"])

    def roomy(cache: Array) -> Array:
        return jnp.pad(cache, ((0, 0), (0, 0), (0, size - tokens.shape[1]), (0, 0)))

    with full_precision(model):
        x = model.embedding[tokens]
        rotation, slopes = model.positions(tokens.shape[1], x)
        one = model.config.share_kv and rotation is None
        x, caches = lax.scan(step, x, model.blocks)
        keys, values = jax.tree.map(roomy, caches)
        last = x[jnp.arange(len(tokens)), lengths - 1]
        return _State(keys, values, lengths, model.logits(model.norm(last)))


def _decode(model: PaLM, state: _State, tokens: Array | np.ndarray) -> _State:
    size, positions = state.keys.shape[2], state.lengths

    def step(carry: Carry, block: tuple[Block, Array]) -> tuple[Carry, None]:
        x, keys, values = carry
        layer, i = block
        # The caches are carried whole, not scanned over: then the loop writes into them in place.
        x, k, v = layer.decode(x, rotation, slopes, keys[i], None if values is None else values[i], positions)
        return (x, keys.at[i].set(k), None if values is None else values.at[i].set(v)), None

    with full_precision(model):
        x = model.embedding[tokens]
        rotation, slopes = model.positions(size, x)
        if rotation is not None:
            rotation = rotation[0][positions], rotation[1][positions]
        layers = (model.blocks, jnp.arange(model.config.depth))
        (x, keys, values), _ = lax.scan(step, (x, state.keys, state.values), layers)
        return _State(keys, values, positions + 1, model.logits(model.norm(x)))


@eqx.filter_jit(donate="all-except-first")
def _next(inputs: tuple[PaLM, np.ndarray, Sampling], state: _State) -> tuple[_State, Array, Array]:
    model, gumbel, sampling = inputs
    tokens, logprobs = choose(state.logits, gumbel, sampling)
    return _decode(model, state, tokens), tokens, logprobs


@eqx.filter_jit(donate="all-except-first")
def _feed(inputs: tuple[PaLM, np.ndarray], state: _State) -> _State:
    return _decode(inputs[0], state, inputs[1])


def choose(logits: Array, gumbel: Array | np.ndarray, sampling: Sampling) -> tuple[Array, Array]:
    """The next tokens by `palm.sampling.Sampling`, and the model's log-probabilities of them.

    Shapes: two of (b, v) -> two of (b,).
    """
    wide = widen(logits)
    if sampling.temperature == 0:
        tokens = wide.argmax(-1)
    else:
        scores = wide / sampling.temperature
        if sampling.filters:
            tokens = _choose_among_kept(scores, gumbel, sampling)
        else:
            tokens = (scores + gumbel).argmax(-1)
    return tokens, jnp.take_along_axis(jax.nn.log_softmax(wide), tokens[:, None], -1)[:, 0]


def _choose_among_kept(scores: Array, gumbel: Array | np.ndarray, sampling: Sampling) -> Array:
    order = jnp.argsort(scores, axis=-1, descending=True, stable=True)
    ranked = jnp.take_along_axis(scores, order, -1)
    keep = jnp.ones(ranked.shape, bool)
    if sampling.top_k is not None:
        keep = keep.at[:, sampling.top_k :].set(False)
    if sampling.top_p is not None:
        p = jax.nn.softmax(jnp.where(keep, ranked, -jnp.inf), -1)
        keep &= p.cumsum(-1) - p < sampling.top_p
    if sampling.min_p is not None:
        keep &= ranked >= ranked[:, :1] + math.log(sampling.min_p)
    best = (jnp.where(keep, ranked, -jnp.inf) + jnp.take_along_axis(gumbel, order, -1)).argmax(-1)
    return jnp.take_along_axis(order, best[:, None], -1)[:, 0]
