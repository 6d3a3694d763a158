"""What a model accepts as tokens, checked alike by the referee and both wings."""

from __future__ import annotations

from typing import Any

import numpy as np

from palm.config import PaLMConfig
from palm.errors import TokenError

# The label of a position whose prediction does not count, as in other libraries.
IGNORED = -100
NO_VALUES = "tokens must have values; got a tensor on the meta device. Pass one on a real device."


def check_tokens(tokens: Any, config: PaLMConfig, *, at_least: int = 1) -> np.ndarray:
    """Tokens (NumPy's, either framework's, or nested lists) as a checked int64 array (..., n).

    Raises `TokenError` unless they are integers in [0, num_tokens) with n ≥ `at_least`.
    """
    if isinstance(tokens, (str, bytes)):
        raise TokenError(
            "tokens must be ids; got text. Encode it: np.frombuffer(text, np.uint8) of bytes are its tokens."
        )
    if hasattr(tokens, "detach"):  # a torch tensor, perhaps on a device
        if getattr(tokens, "is_meta", False):
            raise TokenError(NO_VALUES)
        tokens = tokens.detach().cpu()
    try:
        array = np.asarray(tokens)
    except (TypeError, ValueError) as error:
        raise TokenError(f"tokens must be an array of integers; {error}. Use an integer array.") from None
    check_shape(array.shape, array.dtype.kind in "iu", str(array.dtype), at_least=at_least)
    check_range(int(array.min()), int(array.max()), config)
    return array.astype(np.int64)


def check_shape(shape: tuple[int, ...], is_integer: bool, dtype: str, *, at_least: int = 1) -> None:
    """The part of the check that needs no values: a wing can make it while tracing."""
    if 0 in shape or len(shape) == 0:
        raise TokenError(
            f"tokens must have shape (..., n) with at least one token; got shape={shape}. Pass n ≥ 1 ids."
        )
    if not is_integer:
        raise TokenError(f"tokens must be integers; got dtype={dtype}. Cast them to an integer type.")
    if shape[-1] < at_least:
        raise TokenError(
            f"tokens must have n ≥ {at_least} because the loss predicts the next token; got n={shape[-1]}. "
            "Pass longer sequences."
        )


def check_segments(shape: tuple[int, ...], is_integer: bool, of_tokens: tuple[int, ...]) -> None:
    """Raise `TokenError` unless segments, or labels, are integers, one for each token."""
    if not is_integer or tuple(shape) != tuple(of_tokens):
        kind = "" if is_integer else "numbers that are no integers, "
        raise TokenError(
            f"segments and labels must be integers, one for each token; got {kind}shape={tuple(shape)} for "
            f"tokens of shape={tuple(of_tokens)}. Give each token one number."
        )


def checked_beside(beside: Any, of_tokens: tuple[int, ...]) -> np.ndarray | None:
    """Segments or labels as an int64 array of the tokens' shape, if there are any. Raises `TokenError`."""
    if beside is None:
        return None
    array = np.asarray(beside)
    check_segments(array.shape, array.dtype.kind in "iu", of_tokens)
    return array.astype(np.int64)


def check_range(low: int, high: int, config: PaLMConfig) -> None:
    """The part of the check that needs the smallest and the largest id."""
    if low < 0 or high >= config.num_tokens:
        raise TokenError(
            f"tokens must lie in [0, num_tokens) = [0, {config.num_tokens}); got "
            f"token={low if low < 0 else high}. Check the tokenizer, or raise num_tokens."
        )


def next_targets(
    tokens: np.ndarray, segments: np.ndarray | None = None, labels: np.ndarray | None = None
) -> np.ndarray:
    """What each position but the last predicts: the next label, or token if there are no labels.

    It is `IGNORED` where the next token is of another segment. Shapes: three of (..., n) -> (..., n − 1).
    """
    targets = (tokens if labels is None else labels)[..., 1:]
    if segments is None:
        return targets
    return np.where(segments[..., 1:] == segments[..., :-1], targets, IGNORED)
