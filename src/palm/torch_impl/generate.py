"""Cached decoding of the torch wing. Mirror: palm.jax_impl.generate.

Letters: l layers, b batch, n cached positions, d dim, h heads, e dim_head, v num_tokens.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from palm.sampling import Sampling
from palm.torch_impl.block import Block
from palm.torch_impl.model import PaLM
from palm.torch_impl.norm import widen
from palm.torch_impl.weights import to_array


class Decoder:
    """A batch of sequences that grow by one token at a time, with the keys and values of the earlier ones.

    The cache has one key head and one value head: it is h times smaller than multi-head attention's, and
    half of that where keys are values (`share_kv` with ALiBi). Shapes are static: (l, b, n, e) with room for
    `size` positions. Source: Shazeer (arXiv:1911.02150).
    """

    def __init__(self, model: PaLM, prompts: np.ndarray, lengths: np.ndarray, size: int) -> None:
        """Run the prompts (b, p), padded at their ends; sequence r has `lengths[r]` tokens."""
        self.model, self.size = model, size
        device = model.embedding.weight.device
        self._lengths = torch.from_numpy(lengths).to(device)
        with torch.no_grad():
            self._logits = self._prefill(torch.from_numpy(prompts).to(device))

    @property
    def logits(self) -> Tensor:
        """Of each sequence's next token. Shape (b, v)."""
        return self._logits

    def next(self, noise: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
        """Choose each sequence's next token and take it in.

        Log-probabilities are the model's own, in nats: of no temperature, before anything is left out.
        Shapes: noise (b, v) -> ids (b,), log-probabilities (b,).
        """
        with torch.no_grad():
            gumbel = torch.from_numpy(noise).to(self.logits.device, widen(self.logits).dtype)
            tokens, logprobs = choose(self.logits, gumbel, sampling)
            self._logits = self._decode(tokens)
        return to_array(tokens), to_array(logprobs)

    def feed(self, tokens: np.ndarray) -> None:
        """Take in given tokens (b,) instead of chosen ones."""
        with torch.no_grad():
            self._logits = self._decode(torch.from_numpy(tokens).to(self.logits.device))

    def _prefill(self, tokens: Tensor) -> Tensor:
        model = self.model
        x = model.embedding(tokens)
        rotation, slopes = model.positions(tokens.shape[1], x)
        shape = (model.config.depth, len(tokens), self.size, model.config.dim_head)
        self._keys = x.new_zeros(shape)
        one = model.config.share_kv and rotation is None
        self._values = self._keys if one else x.new_zeros(shape)
        for layer, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            taps = block.activations(x, rotation, slopes)
            self._keys[layer, :, : tokens.shape[1]] = taps["k"]
            self._values[layer, :, : tokens.shape[1]] = taps["v"]
            x = taps["out"]
        last = x[torch.arange(len(tokens), device=x.device), self._lengths - 1]
        return model.logits(model.norm(last))

    def _decode(self, tokens: Tensor) -> Tensor:
        model, positions = self.model, self._lengths
        x = model.embedding(tokens.long())
        rotation, slopes = model.positions(self.size, x)
        if rotation is not None:
            rotation = rotation[0][positions], rotation[1][positions]
        for layer, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            x = block.decode(x, rotation, slopes, self._keys[layer], self._values[layer], positions)
        self._lengths = positions + 1
        return model.logits(model.norm(x))


def choose(logits: Tensor, gumbel: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
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
