"""A model's logits as serving it computes them: decoded with a cache, each sequence alone, behind padding.

All of these are ways to compute what one forward pass of the whole batch gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from palm.backends import backend_of, config_of, dtype_of, model_of, wing_of
from palm.errors import ConfigError
from palm.fields import check_choice
from palm.models import activations
from palm.spec.parameters import numpy_dtype
from palm.spec.tokens import check_tokens

ROWS, PADDING = ("together", "alone"), ("none", "left")
# The id in front of a sequence, and behind a prompt; and how many there are at most in front.
_PAD, _MOST = 0, 16


@dataclass(frozen=True)
class _Served:
    """The function that `served` returns."""

    model: Any
    decode: bool
    rows: str
    padding: str

    @property
    def __name__(self) -> str:
        """What a comparison calls it."""
        decode, alone, padded = self.decode, self.rows == "alone", self.padding == "left"
        ways = {"decode on": decode, "rows alone": alone, "padding left": padded}
        return " ".join((backend_of(self.model), *(way for way, is_on in ways.items() if is_on)))

    def __call__(self, tokens: Any) -> np.ndarray:
        """Logits (..., n, v) of ids (..., n)."""
        ids = check_tokens(tokens, config_of(self.model))
        batch = ids.reshape(-1, ids.shape[-1])
        computed, numbers = (_decoded, _prompts) if self.decode else (_forward, _fronts)
        own = numbers(*batch.shape) if self.decode or self.padding == "left" else np.zeros(len(batch), int)
        size = 1 if self.rows == "alone" else len(batch)
        parts = [slice(first, first + size) for first in range(0, len(batch), size)]
        logits = np.concatenate([computed(self.model, batch[part], own[part]) for part in parts])
        return logits.reshape(*ids.shape, -1)


def served(
    model: Any,
    *,
    decode: bool = False,
    rows: Literal["together", "alone"] = "together",
    padding: Literal["none", "left"] = "none",
) -> Callable[[Any], np.ndarray]:
    """A function of ids (..., n) that gives `model`'s logits (..., n, v) as serving it computes them.

    `palm.compare(palm.served(model, decode=True), model, tokens)` says whether they are those of the forward
    pass. In the same way `palm compare torch torch@decode=on` does, each side in a process of its own.

    - `decode`: by the cache of keys and values that `palm.generate` uses. Each sequence is decoded from its
      first token, one token at a time; and half of it once more behind a prompt, whose length is another one
      for each sequence, in one batch. There the logits are the mean of both.
    - `rows="alone"`: each sequence is a batch of its own.
    - `padding="left"`: other ids stand in front of each sequence, another number of them for each, as a
      document of their own (`segments` of `palm.activations`).

    Raises `BackendError` if the model is not palm's, and `ConfigError` for other values, and for padding on
    the left together with `decode`: palm's decoder pads prompts at their ends.
    """
    check_choice("rows", rows, ROWS)
    check_choice("padding", padding, PADDING)
    check_padding(padding, decode=decode)
    return _Served(model_of(model), bool(decode), rows, padding)


def check_padding(padding: str, *, decode: bool) -> None:
    """Raise `ConfigError` for padding that decoding does not have."""
    if decode and padding == "left":
        raise ConfigError(
            "padding must be none with decode, because palm's decoder pads prompts at their ends, which "
            "decode tries; got padding=left. Leave one of the two out."
        )


def _prompts(rows: int, length: int) -> np.ndarray:
    """How long the prompt of each sequence is: evenly spread, none longer than half of the sequence."""
    return 1 + length // 2 * (2 * np.arange(rows) + 1) // (2 * rows)


def _fronts(rows: int, length: int) -> np.ndarray:
    """How many ids stand in front of each sequence."""
    return 1 + np.arange(rows) % _MOST


def _forward(model: Any, ids: np.ndarray, fronts: np.ndarray) -> np.ndarray:
    """One pass over sequences (b, n) with so many ids in front of each. Shape (b, n, v)."""
    if not fronts.any():
        return activations(model, ids)["logits"]
    rows, length = ids.shape
    at = fronts[:, None] + np.arange(length)
    padded, segments = np.full((rows, length + _MOST), _PAD), np.zeros((rows, length + _MOST), int)
    np.put_along_axis(padded, at, ids, 1)
    np.put_along_axis(segments, at, 1, 1)
    return np.take_along_axis(activations(model, padded, segments=segments)["logits"], at[..., None], 1)


def _decoded(model: Any, ids: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """From the first token on, and behind the prompts as far as that goes. Shape (b, n, v).

    Of a position that both give it is the mean: what is wrong in either moves it. Nothing is decoded beyond
    the end of a sequence, where a model may have no positions any more. So all sequences stop behind their
    prompts where the one of the longest prompt ends.
    """
    each, length = np.arange(len(ids)), ids.shape[1]
    vocabulary, dtype = config_of(model).num_tokens, numpy_dtype(dtype_of(model))
    total, count = np.zeros((*ids.shape, vocabulary)), np.zeros((*ids.shape, 1))
    for starts in (np.ones_like(prompts), prompts):
        padded = np.where(np.arange(length) < starts[:, None], ids, _PAD)
        decoder = wing_of(model).Decoder(model, padded, starts, length)
        for at in range(length - int(starts.max()) + 1):
            if at:
                decoder.feed(ids[each, starts + at - 1])
            total[each, starts + at - 1] += decoder.fetch(decoder.logits)
            count[each, starts + at - 1] += 1
    return (total / count).astype(dtype)
