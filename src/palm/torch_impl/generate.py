"""Cached decoding of the torch wing. Mirror: palm.jax_impl.generate.

Letters: l layers, b batch, n cached positions, d dim, h heads, e dim_head, v num_tokens.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from palm.spec.sampling import Room, Sampling
from palm.spec.tokens import check_tokens
from palm.torch_impl.decode import layers_of, output_of
from palm.torch_impl.model import PaLM
from palm.torch_impl.norm import widen
from palm.torch_impl.position import heads_rotation, masked_scores
from palm.torch_impl.shapes import Chances, Each, Next
from palm.torch_impl.weights import gathered, to_array
from palm.torch_impl.wrapped import check_plain, settled
from palm.tracing.turns import shared


class Decoder:
    """A batch of sequences that grow by one token at a time, with the keys and values of the earlier ones.

    The cache has one key head and one value head: it is h times smaller than multi-head attention's, and
    half of that where keys are values (`share_kv` with ALiBi). Shapes are static: (l, b·n, e) with room for
    `size` positions. Weights are laid out for decoding first (`palm.torch_impl.decode`), which takes as much
    memory again, or with `weights="int8"` a byte a number. Source: Shazeer (arXiv:1911.02150).
    """

    @shared()
    def __init__(
        self, model: PaLM, prompts: np.ndarray, lengths: np.ndarray, size: int, weights: str | None = None
    ) -> None:
        """Run the prompts (b, p), padded at their ends; sequence r has `lengths[r]` tokens.

        Raises what `settled` and `check_plain` raise, `TokenError`, and `ConfigError` for other lengths or
        where `size` has no room for the prompts; `next` and `feed` do where it has none for one more.
        """
        self._room = Room(size, prompts, lengths)
        model = settled(model)
        check_plain(model)
        model = gathered(model)
        self.model, self.size = model, size
        ids = torch.from_numpy(check_tokens(prompts, model.config))
        device = model.embedding.weight.device
        self._lengths = torch.from_numpy(lengths).to(device)
        self._rows = torch.arange(len(lengths), device=device)
        with torch.no_grad():
            self._logits = self._prefill(ids.to(device))
            self._layers, self._output = layers_of(model, weights), output_of(model, weights)
            self._rotations, self._slopes = model.positions(size, self._logits)

    @property
    def logits(self) -> Next:
        """Of each sequence's next token. Shape (b, v)."""
        return self._logits

    @shared()
    def next(self, noise: np.ndarray | None, sampling: Sampling) -> tuple[Each, Chances]:
        """Choose each sequence's next token and take it in; nothing waits for the result (`fetch` does).

        Log-probabilities are the model's own, in nats: of no temperature, before anything is left out.
        Without noise the likeliest is chosen. Shapes: noise (b, v) -> ids (b,), log-probabilities (b,).
        """
        self._room.take()
        with torch.no_grad():
            wide = widen(self.logits).dtype
            gumbel = None if noise is None else torch.from_numpy(noise).to(self.logits.device, wide)
            tokens, logprobs = choose(self.logits, gumbel, sampling)
            self._logits = self._decode(tokens)
        return tokens, logprobs

    def fetch(self, values: Tensor) -> np.ndarray:
        """What `next` gave, as an array."""
        return to_array(values)

    @shared()
    def feed(self, tokens: np.ndarray) -> None:
        """Take in given tokens (b,) instead of chosen ones. Raises `TokenError`."""
        ids = torch.from_numpy(check_tokens(tokens, self.model.config))
        self._room.check_fed(ids.shape)
        self._room.take()
        with torch.no_grad():
            self._logits = self._decode(ids.to(self.logits.device))

    def _prefill(self, tokens: Tensor) -> Tensor:
        model, (b, n) = self.model, tokens.shape
        config, e = model.config, model.config.dim_head
        self._keys = model.embedding.weight.new_zeros(config.depth, b * self.size, e)
        one = config.keys_are_values
        self._values = self._keys if one else torch.zeros_like(self._keys)
        caches = {
            f"blocks.{layer}.{name}": cache[layer].view(b, -1, e)
            for name, cache in (("k", self._keys), ("v", self._values))
            for layer in range(config.depth)
        }

        def keep(name: str, value: Tensor) -> Tensor:
            if name in caches:
                caches[name][:, :n] = value
            return value

        features = model(tokens, features=True, tap=keep)
        return model.logits(features[self._rows, self._lengths - 1])

    def _decode(self, tokens: Tensor) -> Tensor:
        model, positions = self.model, self._lengths
        x = model.embedding(tokens.long())
        rotation = None
        if self._rotations is not None:
            rotation = heads_rotation(self._rotations, positions, model.config.heads)
        distance = positions[:, None] - torch.arange(self.size, device=x.device)
        bias = masked_scores(widen(x.new_zeros(())), self._slopes, distance)
        rows = self._rows * self.size + positions
        for i, layer in enumerate(self._layers):
            keys = self._keys[i]
            values = keys if self._values is self._keys else self._values[i]
            x = layer.step(x, rotation, bias, keys, values, rows)
        self._lengths = positions + 1
        return self._output.multiply(model.norm(x)) * model.config.logit_scale


def choose(logits: Next, gumbel: Next | None, sampling: Sampling) -> tuple[Each, Chances]:
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
    return tokens, wide.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


def _choose_among_kept(scores: Tensor, gumbel: Tensor, sampling: Sampling) -> Tensor:
    ranked, order = scores.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ranked, dtype=torch.bool)
    if sampling.top_k is not None:
        keep[:, sampling.top_k :] = False
    if sampling.top_p is not None:
        p = ranked.masked_fill(~keep, -math.inf).softmax(-1)
        keep &= p.cumsum(-1) - p < sampling.top_p
    if sampling.min_p is not None:
        keep &= ranked >= ranked[:, :1] + math.log(sampling.min_p)
    best = (ranked.masked_fill(~keep, -math.inf) + gumbel.gather(-1, order)).argmax(-1)
    return order.gather(-1, best[:, None])[:, 0]
