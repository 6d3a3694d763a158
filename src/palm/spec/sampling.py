"""What decoding shares between both wings: how the next token is chosen, and room for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from palm.errors import ConfigError, TokenError
from palm.fields import integer, real
from palm.spec.random import generator

COLDEST = 1e-6


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose from logits: which tokens stay, and how the draw is made among them.

    - `temperature`: logits are divided by it; 0 takes the likeliest token and draws nothing. At least 1e-6
      otherwise: below that the quotients overflow.
    - `top_k`: exactly the k likeliest stay (of equal ones the lower ids); None keeps all.
    - `top_p`: of those, the smallest set of the likeliest whose probability reaches p (arXiv:1904.09751).
    - `min_p`: of those, the ones at least p times as likely as the likeliest (arXiv:2407.01082).

    The draw is Gumbel's: the largest of logit + noise. Its outcome changes only where two of these sums are
    equal to rounding, so the same noise gives the same tokens in both frameworks.
    Raises `ConfigError` if a field breaks its invariant.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        temperature = real("temperature", self.temperature, least=0.0)
        if 0 < temperature < COLDEST:
            raise ConfigError(
                f"temperature must be 0 or at least {COLDEST:g}; got temperature={temperature}. "
                "Use 0 for the likeliest token."
            )
        object.__setattr__(self, "temperature", temperature)
        if self.top_k is not None:
            object.__setattr__(self, "top_k", integer("top_k", self.top_k, least=1))
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None:
                share = real(name, value, least=0.0, strict=True)
                if share > 1:
                    raise ConfigError(f"{name} must be at most 1; got {name}={value!r}. Use a share of 1.")
                # All of the probability is all tokens, whatever a float32 sum says.
                object.__setattr__(self, name, None if name == "top_p" and share == 1 else share)

    @property
    def filters(self) -> bool:
        """Whether any token can be left out."""
        return not (self.top_k is None and self.top_p is None and self.min_p is None)


class Room:
    """How many tokens a decoder's caches still take: a longer sequence would go on in the next one's.

    Raises `TokenError` unless prompts are (b, p), and `ConfigError` unless lengths are (b,) numbers from 1 to
    p and the prompts fit `size` positions.
    """

    def __init__(self, size: int, prompts: np.ndarray, lengths: np.ndarray) -> None:
        if prompts.ndim != 2 or 0 in prompts.shape:
            raise TokenError(
                f"prompts must have shape (b, p) with b, p ≥ 1; got shape={prompts.shape}. Pad them to one "
                "length."
            )
        rows, longest = prompts.shape
        if lengths.shape != (rows,) or lengths.min() < 1 or lengths.max() > longest:
            raise ConfigError(
                f"lengths must be one number from 1 to {longest} for each of {rows} prompts; got "
                f"lengths={lengths.tolist()}. Count the tokens of each prompt before its padding."
            )
        if size < prompts.shape[1]:
            raise ConfigError(
                f"size must be at least the tokens of the prompts, {prompts.shape[1]}; got size={size}. "
                "Raise it."
            )
        self.size, self.left, self.rows = size, size - int(lengths.max()), rows

    def check_fed(self, shape: tuple[int, ...]) -> None:
        """Raise `TokenError` unless there is one given token for each sequence."""
        if tuple(shape) != (self.rows,):
            raise TokenError(
                f"tokens must have shape (b,) = ({self.rows},), one for each sequence; got "
                f"shape={tuple(shape)}. Pass the next token of every sequence."
            )

    def take(self) -> None:
        """Take the room of one more token. Raises `ConfigError` if there is none."""
        if self.left == 0:
            raise ConfigError(
                f"size must be at least the tokens of the longest sequence; got size={self.size} and one "
                "more. Make the Decoder with a larger size."
            )
        self.left -= 1


class Noise:
    """Gumbel noise for each sequence of a batch: of (seed, row) alone, whatever else is in the batch.

    `first`: the number of the first row, if the batch is a part of a longer list.
    """

    def __init__(self, seed: int, rows: int, num_tokens: int, first: int = 0) -> None:
        self._generators = [generator(seed, f"generate/{row}") for row in range(first, first + rows)]
        self._num_tokens = num_tokens

    def next(self) -> np.ndarray:
        """The noise of the next token. Shape (rows, num_tokens), float64."""
        return np.stack([draws.gumbel(size=self._num_tokens) for draws in self._generators])
