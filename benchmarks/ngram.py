"""An n-gram model of bytes: what counting reaches, for trained models to be measured against.

Interpolated modified Kneser-Ney (Chen and Goodman, 1999), ending in the uniform distribution over all 256
bytes. `python benchmarks/ngram.py [FILE ...]` prints orders 3 to 6 on each text, Python's own documentation
by default; the last 5 % of a text validate.
"""

from __future__ import annotations

import pydoc_data.topics
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BYTES = 256
LONGEST = 8  # bytes in the 64 bits that hold an n-gram
FALLBACK = np.array([0.5, 1.0, 1.5])  # discounts where a text has too few n-grams to estimate them
TRAIN_PERCENT = 95


def ngram_bits_per_byte(train: bytes, validation: bytes, order: int = 5) -> float:
    """Mean −log2 p of each validation byte, given the up to order − 1 validation bytes before it."""
    if not validation:
        raise ValueError("validation must have at least one byte; got none. Pass a longer text.")
    return float(-np.log2(NGramModel(train, order).probabilities(validation)).mean())


def python_documentation() -> bytes:
    """What `help("topics")` of this Python knows: 0.5 MB of English prose, grammar and examples."""
    topics = pydoc_data.topics.topics
    return "\n".join(topics[name] for name in sorted(topics)).encode()


def pack(text: bytes, length: int) -> np.ndarray:
    """Every n-gram of the text in order, each as one number whose lowest byte is its last."""
    corpus = np.frombuffer(text, np.uint8).astype(np.uint64)
    packed = np.zeros(max(len(corpus) - length + 1, 0), np.uint64)
    for start in range(length):
        packed = packed << 8 | corpus[start : start + len(packed)]
    return packed


def discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken off a count of 1, of 2, and of 3 or more."""
    n1, n2, n3, n4 = (np.count_nonzero(counts == count) for count in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return FALLBACK
    y = n1 / (n1 + 2 * n2)
    found = np.array([1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    # Below zero a discount would take probability from unseen bytes; at zero they might be left none.
    return found if (found > 0).all() else FALLBACK


@dataclass(frozen=True)
class Level:
    """The n-grams of one length, and what they say about their last byte given those before it."""

    length: int
    grams: np.ndarray  # packed, sorted
    kept: np.ndarray  # their discounted count over the total of their context
    contexts: np.ndarray  # packed, sorted
    left: np.ndarray  # what the discounts leave of a context's probability to the shorter n-grams

    @classmethod
    def count(cls, text: bytes, length: int, *, longest: bool) -> Level:
        """The longest n-grams count how often they occur, the others how many bytes they follow."""
        if longest:
            grams, counts = np.unique(pack(text, length), return_counts=True)
        else:
            followed = np.unique(pack(text, length + 1)) & np.uint64((1 << 8 * length) - 1)
            grams, counts = np.unique(followed, return_counts=True)
        discount = discounts(counts)[np.minimum(counts, 3) - 1]
        contexts, which = np.unique(grams >> 8, return_inverse=True)
        totals = np.bincount(which, counts)
        left = np.bincount(which, discount) / totals
        return cls(length, grams, (counts - discount) / totals[which], contexts, left)

    def interpolate(self, grams: np.ndarray, shorter: np.ndarray) -> np.ndarray:
        """The probabilities of the last bytes, from those that the next shorter n-grams give them."""
        kept = look_up(self.grams, self.kept, grams, missing=0.0)
        return kept + look_up(self.contexts, self.left, grams >> 8, missing=1.0) * shorter


def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, *, missing: float) -> np.ndarray:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], missing)


class NGramModel:
    def __init__(self, train: bytes, order: int) -> None:
        if not 1 <= order <= LONGEST:
            raise ValueError(f"order must be from 1 to {LONGEST}; got order={order}. Choose one of these.")
        if len(train) < order:
            raise ValueError(f"train must have at least order={order} bytes; got {len(train)}. Pass more.")
        self.levels = [Level.count(train, n, longest=n == order) for n in range(1, order + 1)]

    def probabilities(self, text: bytes) -> np.ndarray:
        """Of each byte of the text given those before it, of which there are none before the first."""
        found = np.full(len(text), 1 / BYTES)
        for level in self.levels:
            start = level.length - 1
            found[start:] = level.interpolate(pack(text, level.length), found[start:])
        return found


def main() -> None:
    texts = {path: Path(path).read_bytes() for path in sys.argv[1:]}
    for name, text in (texts or {"Python's documentation": python_documentation()}).items():
        split = len(text) * TRAIN_PERCENT // 100
        for order in (3, 4, 5, 6):
            bits = ngram_bits_per_byte(text[:split], text[split:], order)
            print(f"{name}, {len(text):,} bytes, order {order}: {bits:.3f} bits per byte")


if __name__ == "__main__":
    main()
