"""One generated sequence: its ids, its text so far, and the piece of the text that is certain."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from palm.data.tokenizer import Tokenizer
from palm.errors import TokenError


@dataclass(frozen=True, repr=False, eq=False)
class Generation:  # noqa: PLW1641 - arrays have no hash either
    """What was generated after one prompt.

    `tokens` are the new ids and `logprobs` their log-probabilities under the model, in nats (of no
    temperature, before any token is left out). `finish` is "stop" or "length". Two are equal if all their
    values are.
    """

    decoded: str | None = field(repr=False)
    tokens: np.ndarray[tuple[int], np.dtype[np.int64]]
    logprobs: np.ndarray[tuple[int], np.dtype[np.float64]]
    finish: str

    @property
    def text(self) -> str:
        """The text of the tokens, up to the stop sequence if one ended it.

        Raises `TokenError` where no tokenizer was known: ids are not text.
        """
        if self.decoded is None:
            raise TokenError(
                f"text must be decoded by a tokenizer; got {len(self.tokens)} tokens of a model whose "
                "tokenizer is not known. Read .tokens, or pass tokenizer= to palm.generate."
            )
        return self.decoded

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Generation):
            return NotImplemented
        return (self.decoded, self.finish) == (other.decoded, other.finish) and all(
            np.array_equal(a, b) for a, b in ((self.tokens, other.tokens), (self.logprobs, other.logprobs))
        )

    def __repr__(self) -> str:
        shown = f"{len(self.tokens)} tokens" if self.decoded is None else f"text={self.decoded!r}"
        return f"Generation({shown}, finish={self.finish!r})"


class Row:
    """One sequence: its ids, its text, and how much of the text is certain."""

    def __init__(self, tokenizer: Tokenizer | None, stops: list[str], stop_ids: set[int]) -> None:
        self.stops, self.stop_ids = stops, stop_ids
        self.stream = None if tokenizer is None else tokenizer.stream()
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
        return "" if self.stream is None else self._add(self.stream.feed(token), more=True)

    def finish(self) -> str:
        """The text that was held back, because more could have come."""
        if self.cut or self.stream is None:
            return ""
        return self._add(self.stream.finish(), more=False)

    def generation(self) -> Generation:
        """All of it."""
        text = None if self.stream is None else self.text
        return Generation(
            text, np.array(self.tokens), np.array(self.logprobs), "stop" if self.stopped else "length"
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
