"""Text from a model of either backend: prompts, stopping and streaming; decoding itself is the wing's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from palm.backends import config_of, wing_of
from palm.config import PaLMConfig
from palm.data.tokenizer import ByteTokenizer, Tokenizer
from palm.errors import ConfigError, TokenError
from palm.fields import check_choice, integer
from palm.spec.sampling import Noise, Sampling
from palm.spec.tokens import check_tokens

OnText = Callable[[int, str], None]
# Lengths are rounded up to whole blocks, so that compiled programs serve many prompts.
BLOCK = 64
# What decoding can round the weights to.
WEIGHTS = ("int8",)


@dataclass(frozen=True)
class Generation:
    """What was generated after one prompt.

    `tokens` are the new ids and `logprobs` their log-probabilities under the model, in nats (of no
    temperature, before any token is left out). `text` is what they say, up to the stop sequence if one
    ended it; `finish` is "stop" or "length".
    """

    text: str
    tokens: np.ndarray = field(repr=False)
    logprobs: np.ndarray = field(repr=False)
    finish: str


def generate(
    model: Any,
    prompt: Any,
    *,
    max_new_tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop: Sequence[str | int] = (),
    seed: int = 0,
    weights: str | None = None,
    tokenizer: Tokenizer | None = None,
    on_text: OnText | None = None,
) -> Any:
    """Continue a prompt, or a list of prompts of any lengths in one batch; a `Generation` each.

    A prompt is text or ids. Keys and values are cached: one head of each (`Decoder`). `stop` holds texts and
    ids that end a sequence; only what is generated is searched for them. The noise of row r is drawn from
    (seed, r) by palm's own generator, so the same seed gives the same tokens in both backends. `on_text(row,
    piece)` is called with whole characters as they are certain. `Sampling` explains the rest.

    `weights="int8"` decodes from weights of eight bits, for less memory; the prompt is still read in full
    precision (docs/performance.md says what it costs).

    Raises `ConfigError`, and `TokenError` for a prompt that is empty or outside the vocabulary.
    """
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    count = integer("max_new_tokens", max_new_tokens, least=1)
    check_choice("weights", weights, WEIGHTS, optional=True)
    config, encoder = config_of(model), tokenizer or ByteTokenizer()
    if isinstance(prompt, (list, tuple)) and not prompt:
        raise TokenError(
            "prompt must be text, ids, or a list of prompts; got an empty list. Pass at least one."
        )
    is_batch = isinstance(prompt, (list, tuple)) and not all(
        isinstance(item, (int, np.integer)) for item in prompt
    )
    prompts = [encode_prompt(item, encoder, config) for item in (prompt if is_batch else [prompt])]
    stops, stop_ids = _stops(stop)
    rows = [_Row(encoder, stops, stop_ids) for _ in prompts]
    lengths = np.array([len(ids) for ids in prompts])
    padded = np.zeros((len(prompts), _rounded(int(lengths.max()))), np.int64)
    for number, ids in enumerate(prompts):
        padded[number, : len(ids)] = ids
    size = _rounded(int(lengths.max()) + count)
    decoder = wing_of(model).Decoder(model, padded, lengths, size, weights)
    noise = Noise(seed, len(prompts), config.num_tokens) if sampling.temperature else None
    ahead = None
    for step in range(count):
        # The device is at the next token already while this one is told.
        now = ahead or decoder.next(noise.next() if noise else None, sampling)
        ahead = decoder.next(noise.next() if noise else None, sampling) if step + 1 < count else None
        tokens, logprobs = map(decoder.fetch, now)
        for number, (row, token, logprob) in enumerate(zip(rows, tokens, logprobs, strict=True)):
            piece = row.take(int(token), float(logprob))
            if piece and on_text is not None:
                on_text(number, piece)
        if all(row.stopped for row in rows):
            break
    generations = []
    for number, ended in enumerate(rows):
        piece = ended.finish()
        if piece and on_text is not None:
            on_text(number, piece)
        generations.append(ended.generation())
    return generations if is_batch else generations[0]


class _Row:
    """One sequence: its ids, its text, and how much of the text is certain."""

    def __init__(self, encoder: Tokenizer, stops: list[str], stop_ids: set[int]) -> None:
        self.stops, self.stop_ids = stops, stop_ids
        self.stream = encoder.stream()
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.text = ""
        self.told = 0
        self.stopped = self.cut = False

    def take(self, token: int, logprob: float) -> str:
        """Add a token; the text that is certain now, and was not before."""
        if self.stopped:
            return ""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in self.stop_ids:
            self.stopped = True
            return ""
        return self._add(self.stream.feed(token), more=True)

    def finish(self) -> str:
        """The text that was held back, because more could have come."""
        return "" if self.cut else self._add(self.stream.finish(), more=False)

    def generation(self) -> Generation:
        """All of it."""
        return Generation(
            self.text, np.array(self.tokens), np.array(self.logprobs), "stop" if self.stopped else "length"
        )

    def _add(self, piece: str, *, more: bool) -> str:
        self.text += piece
        found = [at for at in (self.text.find(stop) for stop in self.stops) if at >= 0]
        if found:
            self.text, self.stopped, self.cut = self.text[: min(found)], True, True
            certain = len(self.text)
        else:
            certain = len(self.text) - (self._held() if more else 0)
        told, self.told = self.told, max(self.told, certain)
        return self.text[told : self.told]

    def _held(self) -> int:
        """How many characters at the end could be the start of a stop sequence."""
        spans = (
            size for stop in self.stops for size in range(1, len(stop)) if self.text.endswith(stop[:size])
        )
        return max(spans, default=0)


def encode_prompt(prompt: Any, encoder: Tokenizer, config: PaLMConfig) -> np.ndarray:
    """The ids of one prompt, text or ids already. Raises `TokenError` if empty or outside the vocabulary."""
    ids = encoder.encode(prompt) if isinstance(prompt, (str, bytes)) else prompt
    try:
        size = np.size(ids)
    except ValueError:
        size = -1  # rows of several lengths: check_tokens explains
    if size == 0:
        raise TokenError(
            "prompt must have at least one token; got an empty one. Use a newline to start afresh."
        )
    checked = check_tokens(ids, config)
    if checked.ndim != 1:
        raise TokenError(
            f"prompt must be text or one row of ids; got shape={checked.shape}. Pass a list of prompts."
        )
    return checked


def _stops(stop: Sequence[str | int]) -> tuple[list[str], set[int]]:
    items = list(stop) if isinstance(stop, Iterable) and not isinstance(stop, str) else [stop]
    texts = [item for item in items if isinstance(item, str)]
    if "" in texts or any(not isinstance(item, (str, int, np.integer)) for item in items):
        raise ConfigError(f"stop must hold texts that are not empty, or ids; got stop={stop!r}. Change it.")
    return texts, {int(item) for item in items if not isinstance(item, str)}


def _rounded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK
