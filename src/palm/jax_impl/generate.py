"""Cached decoding of the JAX wing. Mirror: palm.torch_impl.generate.

Letters: l layers, b batch, n cached positions, d dim, h heads, e dim_head, v num_tokens.
"""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from palm.errors import BackendError
from palm.jax_impl.decode import Layer, Matrix, layers_of, output_of
from palm.jax_impl.model import PaLM, full_precision, run
from palm.jax_impl.norm import widen
from palm.jax_impl.position import heads_rotation, masked_scores
from palm.jax_impl.shapes import Chances, Each, Next
from palm.jax_impl.sharding import everywhere, share_out, spread
from palm.jax_impl.wrapped import check_plain, settled
from palm.spec.sampling import Room, Sampling
from palm.spec.tokens import check_tokens
from palm.tracing.turns import shared


class _State(eqx.Module):
    """What decoding carries: caches, l of (b·n, e), lengths (b,), and logits (b, v) of the next token."""

    keys: list[Array]
    values: list[Array | None]
    lengths: Array
    logits: Array


class _Packed(eqx.Module):
    """The model, and its matrices as decoding reads them."""

    model: PaLM
    layers: list[Layer]
    output: Matrix


class Decoder:
    """A batch of sequences that grow by one token at a time, with the keys and values of the earlier ones.

    The cache has one key head and one value head: it is h times smaller than multi-head attention's, and
    half of that where keys are values (`share_kv` with ALiBi). Shapes are static: l of (b·n, e) with room
    for `size` positions, so that each step is the same compiled program. Weights are laid out for decoding
    first (`palm.jax_impl.decode`), which takes as much memory again (of bfloat16 on a CPU twice as much, for
    it is widened), or with `weights="int8"` a byte a number. Source: Shazeer (arXiv:1911.02150).
    """

    @shared()
    def __init__(
        self, model: PaLM, prompts: np.ndarray, lengths: np.ndarray, size: int, weights: str | None = None
    ) -> None:
        """Run the prompts (b, p), padded at their ends; sequence r has `lengths[r]` tokens.

        Ids that are JAX's arrays are not read: those outside the vocabulary make the logits of their
        sequence NaN. Ids that are NumPy's are checked.
        Raises what `settled` and `check_plain` raise, `TokenError`, and `ConfigError` for other lengths or
        where `size` has no room for the prompts; `next` and `feed` do where it has none for one more.
        """
        self._room = Room(size, prompts, lengths)
        check_plain(settled(model))
        _check_whole(model)
        self.model = model
        among = share_out(lengths.astype(np.int32), model.embedding.weight)
        self._state = _prefill(model, _ids(prompts, model), jnp.asarray(among), size)
        # Not the process's default: the model may be elsewhere.
        platform = next(iter(model.embedding.weight.devices())).platform
        self._packed = _pack(model, weights, len(prompts), platform)

    @property
    def logits(self) -> Next:
        """Of each sequence's next token, until the next is taken in. Shape (b, v)."""
        return self._state.logits

    @shared()
    def next(self, noise: np.ndarray | None, sampling: Sampling) -> tuple[Each, Chances]:
        """Choose each sequence's next token and take it in; nothing waits for the result (`fetch` does).

        Log-probabilities are the model's own, in nats: of no temperature, before anything is left out.
        Without noise the likeliest is chosen. Shapes: noise (b, v) -> ids (b,), log-probabilities (b,).
        """
        self._room.take()
        gumbel = None if noise is None else noise.astype(widen(self.logits).dtype)
        self._state, tokens, logprobs = _next((self._packed, gumbel, sampling), self._state)
        return tokens, logprobs

    def fetch(self, values: Array) -> np.ndarray:
        """What `next` gave, as an array."""
        return np.asarray(values)

    @shared()
    def feed(self, tokens: np.ndarray) -> None:
        """Take in given tokens (b,) instead of chosen ones. Raises `TokenError`, for NumPy's arrays."""
        ids = _ids(tokens, self.model)
        self._room.check_fed(ids.shape)
        self._room.take()
        self._state = _feed((self._packed, ids), self._state)


def _check_whole(model: PaLM) -> None:
    """Raise `BackendError` for weights in parts on explicit axes: no sharding is known for packed ones."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        sharding = jax.typeof(leaf).sharding
        if sharding.mesh.explicit_axes and any(axis is not None for axis in sharding.spec):
            raise BackendError(
                "weights must be whole on each device of a mesh of explicit axes to decode with; got "
                f"model{jax.tree_util.keystr(path)} of {sharding.spec}. Put them there: "
                "jax.device_put(model, NamedSharding(mesh, PartitionSpec()))."
            )


def _ids(tokens: np.ndarray | Array, model: PaLM) -> Array:
    if isinstance(tokens, jax.Array):
        return tokens
    ids = check_tokens(tokens, model.config).astype(np.int32)
    return jnp.asarray(share_out(ids, model.embedding.weight))


@eqx.filter_jit
def _prefill(model: PaLM, tokens: Array, lengths: Array, size: int) -> _State:
    def roomy(cache: Array) -> list[Array]:
        padded = jnp.pad(cache, ((0, 0), (0, 0), (0, size - tokens.shape[1]), (0, 0)))
        return list(padded.reshape(len(cache), -1, cache.shape[-1]))

    with full_precision(model):
        one = model.config.keys_are_values
        _, y, caches = run(model, tokens, wanted=("k",) if one else ("k", "v"))
        logits = model.logits(y[jnp.arange(len(tokens)), lengths - 1])
        values: list[Array | None] = []
        values += [None] * model.config.depth if one else roomy(caches["v"])
        return everywhere(_State(roomy(caches["k"]), values, lengths, logits))


@eqx.filter_jit
def _pack(model: PaLM, weights: str | None, batch: int, platform: str) -> _Packed:
    options = (weights, batch, platform)
    looked_up = eqx.tree_at(lambda m: m.embedding.weight, model, spread(model.embedding.weight))
    return _Packed(looked_up, layers_of(model, *options), output_of(model, *options))


def _decode(packed: _Packed, state: _State, tokens: ArrayLike) -> _State:
    model, positions, size = packed.model, state.lengths, len(state.keys[0]) // len(state.lengths)
    with full_precision(model):
        x = model.embedding(jnp.asarray(tokens))
        rotations, slopes = model.positions(size, x)
        rotation = None
        if rotations is not None:
            rotation = heads_rotation(rotations, positions, model.config.heads)
        distance = positions[:, None] - jnp.arange(size)
        bias = masked_scores(jnp.zeros((), widen(x).dtype), slopes, distance)
        caches, rows = [], jnp.arange(len(x)) * size + positions
        for layer, k, v in zip(packed.layers, state.keys, state.values, strict=True):
            x, *cache = layer.step(x, rotation, bias, k, v, rows)
            caches.append(cache)
        logits = packed.output.multiply(model.norm(x)) * model.config.logit_scale
    keys, values = (list(of_layers) for of_layers in zip(*caches, strict=True))
    return everywhere(_State(keys, values, positions + 1, logits))


@eqx.filter_jit(donate="all-except-first")
def _next(inputs: tuple[_Packed, np.ndarray | None, Sampling], state: _State) -> tuple[_State, Array, Array]:
    packed, gumbel, sampling = inputs
    tokens, logprobs = choose(state.logits, gumbel, sampling)
    return _decode(packed, state, tokens), *everywhere((tokens, logprobs))


@eqx.filter_jit(donate="all-except-first")
def _feed(inputs: tuple[_Packed, Array], state: _State) -> _State:
    return _decode(inputs[0], state, inputs[1])


def choose(logits: Next, gumbel: Next | np.ndarray | None, sampling: Sampling) -> tuple[Each, Chances]:
    """The next tokens by `palm.spec.sampling.Sampling`, and the model's log-probabilities of them.

    Shapes: two of (b, v) -> two of (b,).
    """
    wide = widen(logits)
    if sampling.temperature == 0 or gumbel is None:
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
