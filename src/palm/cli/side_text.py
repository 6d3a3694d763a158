"""What the sides of a comparison run on: text in the tokens of their checkpoints, or ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from palm.checkpoint.tokenizer import checkpoint_tokenizer
from palm.cli.sides import checkpoints_of
from palm.data.corpus import Corpus, open_corpus
from palm.data.tokenizer import ByteTokenizer, Tokenizer, vocabulary_size
from palm.data.windows import sample_windows, standard_library_text
from palm.errors import ConfigError
from palm.files.names import visible
from palm.parity.run.sides import Bundle, Original, Side


@dataclass(frozen=True)
class SideText:
    """The tokens of a text, and the tokenizer that made them; None for ids of which nobody says so."""

    corpus: Corpus
    tokenizer: Tokenizer | None

    @property
    def tokens(self) -> str:
        """What the tokens are, for a reader: bytes, ids, or the name of a tokenizer."""
        return "ids" if self.tokenizer is None else visible(getattr(self.tokenizer, "told", "bytes"))

    def windows(self, num_tokens: int, *, batch: int, length: int, seed: int) -> np.ndarray:
        """`sample_windows` of it. Raises `ConfigError` for a model that lacks ids of the tokenizer."""
        if self.tokenizer is not None and self.corpus.largest_possible >= num_tokens:
            vocabulary_size(self.tokenizer, num_tokens)
        return sample_windows(self.corpus, num_tokens, batch=batch, length=length, seed=seed)


def text_of_sides(sides: Sequence[Side | Original | Bundle], data: Path | None) -> SideText | None:
    """The data as `palm train --data` takes them, or a text that is at hand; None beside a bundle.

    A text is encoded by the tokenizer of the checkpoints, and is bytes where none is known. Raises
    `ConfigError` for checkpoints of several tokenizers, and what `open_corpus` raises.
    """
    if any(isinstance(side, Bundle) for side in sides):  # which has its own tokens
        return None
    own = _tokenizer(sides)
    corpus = open_corpus(standard_library_text() if data is None else data, own)
    is_text = math.isfinite(corpus.bytes_per_token)
    return SideText(corpus, corpus.tokenizer or ((own or ByteTokenizer()) if is_text else None))


def _tokenizer(sides: Sequence[Side | Original | Bundle]) -> Tokenizer | None:
    """That of all checkpoints that have one. Raises `ConfigError` if they have several."""
    known = {path: checkpoint_tokenizer(Path(path)) for path in dict.fromkeys(checkpoints_of(sides))}
    found = {path: own for path, own in known.items() if own is not None}
    if len({own.digest for own in found.values()}) > 1:
        told = " and ".join(f"{getattr(own, 'told', own.name)} of {path}" for path, own in found.items())
        raise ConfigError(
            f"the checkpoints of both sides must have the same tokenizer; got {told}. Two trained models are "
            "compared with: palm eval A B --text FILE."
        )
    return next(iter(found.values()), None)
