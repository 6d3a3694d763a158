"""Text from a model of either backend: prompts, stopping and streaming; decoding itself is the wing's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from palm.backends import config_of, model_of, wing_of
from palm.config import PaLMConfig
from palm.data.remembered import remembered_tokenizer
from palm.data.tokenizer import Tokenizer, load_tokenizer
from palm.fields import check_choice, integer
from palm.generation.prompts import encode_prompt, list_prompts, need_tokenizer, text_stops, token_stops
from palm.generation.rows import Generation, Row
from palm.spec.positions import most_positions
from palm.spec.sampling import Noise, Sampling
from palm.spec.sizes import check_cache
from palm.wings import DecoderProtocol

# Text, or ids.
Prompt: TypeAlias = str | Sequence[int] | npt.NDArray[np.integer[Any]]
OnText = Callable[[int, str], None]
# Lengths are rounded up to whole blocks, so that compiled programs serve many prompts.
BLOCK = 64
# What decoding can round the weights to.
WEIGHTS = ("int8",)


@overload
def generate(
    model: Any,
    prompt: Prompt,
    *,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_k: int | None = ...,
    top_p: float | None = ...,
    min_p: float | None = ...,
    stop: Sequence[str | int] = ...,
    stop_tokens: int | Sequence[int] = ...,
    eos_token_id: int | None = ...,
    seed: int = ...,
    first_row: int = ...,
    weights: str | None = ...,
    tokenizer: Any = ...,
    on_text: OnText | None = ...,
) -> Generation: ...


@overload
def generate(
    model: Any,
    prompt: list[Prompt] | list[str] | tuple[str, ...],
    *,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_k: int | None = ...,
    top_p: float | None = ...,
    min_p: float | None = ...,
    stop: Sequence[str | int] = ...,
    stop_tokens: int | Sequence[int] = ...,
    eos_token_id: int | None = ...,
    seed: int = ...,
    first_row: int = ...,
    weights: str | None = ...,
    tokenizer: Any = ...,
    on_text: OnText | None = ...,
) -> list[Generation]: ...


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
    stop_tokens: int | Sequence[int] = (),
    eos_token_id: int | None = None,
    seed: int = 0,
    first_row: int = 0,
    weights: str | None = None,
    tokenizer: Any = None,
    on_text: OnText | None = None,
) -> Generation | list[Generation]:
    """Continue a prompt, or a list of prompts of any lengths in one batch; a `Generation` each.

    A prompt is text or ids. Text is encoded by the tokenizer that the model was trained with, which palm
    knows of a model that `palm.train` or `palm.load` returned, or by `tokenizer`: a path, a tokenizer object,
    or "bytes" (`palm.data.tokenizer.load_tokenizer`). A vocabulary of 256 is of bytes unless more is known.

    `stop` holds texts that end a sequence; only what is generated is searched for them. `stop_tokens` are
    ids that end it, one or several, and `eos_token_id` is one more. `on_text(row, piece)` is called with
    whole characters as they are certain. The noise of row r is drawn from (seed, first_row + r) by palm's own
    generator, so the same seed gives the same tokens in both backends; and a list of prompts gives the same
    in parts, each with the number of its first row. `Sampling` explains the rest.

    `weights="int8"` decodes from weights of eight bits, for less memory; the prompt is still read in full
    precision (docs/performance.md says what it costs).

    Raises `ConfigError`, what `palm.to_numpy` raises, `DataError` for a tokenizer that cannot be used, and
    `TokenError` for a prompt that is empty or outside the vocabulary, or text though no tokenizer is known,
    or that has more positions with its new tokens than xPos.
    """
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    count = integer("max_new_tokens", max_new_tokens, least=1)
    check_choice("weights", weights, WEIGHTS, optional=True)
    model, config = model_of(model), config_of(model)
    encoder = tokenizer_for(model, tokenizer)
    prompts, is_batch = list_prompts(prompt)
    encoded = [encode_prompt(item, encoder, config, count) for item in prompts]
    stops, stop_ids = text_stops(stop, config)
    stop_ids |= token_stops(stop_tokens, eos_token_id, config)
    if stops or on_text is not None:
        need_tokenizer(encoder, config, "stop must be ids and on_text None")
    rows = [Row(encoder, stops, stop_ids) for _ in prompts]
    first = integer("first_row", first_row, least=0)
    noise = Noise(seed, len(rows), config.num_tokens, first) if sampling.temperature else None
    _decode(_decoder(model, encoded, count, weights), rows, count, noise, sampling, on_text)
    generations = [row.generation() for row in rows]
    return generations if is_batch else generations[0]


def tokenizer_for(model: Any, tokenizer: Any) -> Tokenizer | None:
    """The tokenizer that is given, or else the one that the model was trained with; None if none is known.

    Raises `DataError` for one that cannot be used.
    """
    if tokenizer is None:
        return remembered_tokenizer(model_of(model), config_of(model).num_tokens)
    return load_tokenizer(tokenizer)


def check_room(model: Any, prompts: Sequence[np.ndarray], count: int) -> None:
    """Raise `ConfigError` if the keys and values of these prompts and `count` tokens each do not fit."""
    longest = max(map(len, prompts)) + count
    check_cache(config_of(model), batch=len(prompts), length=longest)


def _decoder(model: Any, prompts: list[np.ndarray], count: int, weights: str | None) -> DecoderProtocol:
    """The wing's decoder, which has read the prompts; with a capacity of `count` tokens after each."""
    check_room(model, prompts, count)
    config = config_of(model)
    lengths = np.array([len(ids) for ids in prompts])
    longest = int(lengths.max())
    padded = np.zeros((len(prompts), _rounded(longest, config)), np.int64)
    for number, ids in enumerate(prompts):
        padded[number, : len(ids)] = ids
    return wing_of(model).Decoder(model, padded, lengths, _rounded(longest + count, config), weights)


def _decode(
    decoder: DecoderProtocol,
    rows: list[Row],
    count: int,
    noise: Noise | None,
    sampling: Sampling,
    on_text: OnText | None,
) -> None:
    """Draw up to `count` tokens for each row, until all have stopped, and tell their text as it comes."""

    def tell(number: int, piece: str) -> None:
        if piece and on_text is not None:
            on_text(number, piece)

    ahead = None
    for step in range(count):
        # The device is at the next token already while this one is told.
        now = ahead or decoder.next(noise.next() if noise else None, sampling)
        ahead = decoder.next(noise.next() if noise else None, sampling) if step + 1 < count else None
        tokens, logprobs = map(decoder.fetch, now)
        for number, (row, token, logprob) in enumerate(zip(rows, tokens, logprobs, strict=True)):
            tell(number, row.take(int(token), float(logprob)))
        if all(row.stopped for row in rows):
            break
    for number, row in enumerate(rows):
        tell(number, row.finish())


def _rounded(length: int, config: PaLMConfig) -> int:
    """A length in whole blocks, or as many positions as there are."""
    rounded = -(-length // BLOCK) * BLOCK
    return min(rounded, most_positions(config.xpos_base)) if config.positions == "xpos" else rounded
