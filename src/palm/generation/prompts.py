"""What `palm.generate` is given, as ids: prompts, and what ends a sequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from palm.config import PaLMConfig
from palm.data.tokenizer import Tokenizer
from palm.errors import ConfigError, TokenError
from palm.spec.positions import check_xpos
from palm.spec.tokens import check_tokens


def list_prompts(prompt: Any) -> tuple[list[Any], bool]:
    """The prompts one by one, and whether several were given. Raises `TokenError` for an empty list."""
    if isinstance(prompt, (list, tuple)) and not prompt:
        raise TokenError(
            "prompt must be text, ids, or a list of prompts; got an empty list. Pass at least one."
        )
    is_batch = isinstance(prompt, (list, tuple)) and not all(
        isinstance(item, (int, np.integer)) for item in prompt
    )
    return list(prompt) if is_batch else [prompt], is_batch


def encode_prompt(prompt: Any, tokenizer: Tokenizer | None, config: PaLMConfig, count: int = 0) -> np.ndarray:
    """The ids of one prompt, text or ids already, which `count` new tokens will follow.

    Raises `TokenError` if it is empty or outside the vocabulary, or text though no tokenizer is known; and if
    prompt and new tokens are more than xPos has positions for.
    """
    ids = prompt
    if isinstance(prompt, (str, bytes)):
        ids = need_tokenizer(tokenizer, config, "prompt must be ids").encode(prompt)
    try:
        size = np.size(ids)
    except ValueError:
        size = -1  # rows of several lengths: check_tokens explains
    if size == 0:
        raise TokenError(
            "prompt must have at least one token; got an empty one. "
            "Use a newline to generate without a prompt."
        )
    checked = check_tokens(ids, config)
    if checked.ndim != 1:
        raise TokenError(
            f"prompt must be text or one row of ids; got shape={checked.shape}. Pass a list of prompts."
        )
    if config.positions == "xpos":
        check_xpos(len(checked) + count, config.xpos_base)
    return checked


def need_tokenizer(tokenizer: Tokenizer | None, config: PaLMConfig, otherwise: str) -> Tokenizer:
    """The tokenizer. Raises `TokenError` if none is known; `otherwise` says what is possible without."""
    if tokenizer is None:
        raise TokenError(
            f"{otherwise}, because no tokenizer is known for this model; got text and "
            f'num_tokens={config.num_tokens}. Pass tokenizer= (--tokenizer FILE), or "bytes".'
        )
    return tokenizer


def text_stops(stop: Sequence[str | int], config: PaLMConfig) -> tuple[list[str], set[int]]:
    """The texts and the ids in `stop`. Raises `ConfigError` for what is no text and no id of the model."""
    items = list(stop) if isinstance(stop, Iterable) and not isinstance(stop, str) else [stop]
    texts = [item for item in items if isinstance(item, str)]
    ids = [item for item in items if not isinstance(item, str)]
    if "" in texts or not all(_is_id(item) for item in ids):
        raise ConfigError(f"stop must hold texts that are not empty, or ids; got stop={stop!r}. Change it.")
    return texts, {_in_vocabulary("stop", item, config) for item in ids}


def token_stops(stop_tokens: int | Sequence[int], eos_token_id: int | None, config: PaLMConfig) -> set[int]:
    """The ids that end a sequence. Raises `ConfigError` for what is no id of the vocabulary."""
    items: list[Any] = list(stop_tokens) if isinstance(stop_tokens, Iterable) else [stop_tokens]
    named = [("stop_tokens", item) for item in items]
    named += [] if eos_token_id is None else [("eos_token_id", eos_token_id)]
    return {_in_vocabulary(name, item, config) for name, item in named}


def _is_id(item: object) -> bool:
    return isinstance(item, (int, np.integer)) and not isinstance(item, bool)


def _in_vocabulary(name: str, item: Any, config: PaLMConfig) -> int:
    if not _is_id(item) or not 0 <= item < config.num_tokens:
        raise ConfigError(
            f"{name} must be in the vocabulary, 0 to {config.num_tokens - 1}; got {name}={item!r}. "
            "Look up the id in the tokenizer."
        )
    return int(item)
