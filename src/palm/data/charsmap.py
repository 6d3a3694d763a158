"""The table of characters of a tokenizer.json: a bad one would make its package panic.

Four bytes with the size of a trie, the trie, and texts. The trie is a double array of 32-bit units, from a
character's bytes to where its text starts. Sources: https://github.com/huggingface/spm_precompiled, and
https://github.com/google/sentencepiece/blob/master/third_party/darts_clone/darts.h.
"""

from __future__ import annotations

import numpy as np

# Published ones have less than a megabyte.
_MOST_BYTES = 1 << 22
_LETTERS = np.arange(1, 256)
_LABEL, _VALUE = 0x800000FF, 0x7FFFFFFF
_AT_ONCE = 1 << 10


def check_charsmap(table: bytes) -> None:
    """Raise `ValueError` for a table that leads out of itself."""
    size = int.from_bytes(table[:4], "little")
    if size < 4 or size % 4 or size > len(table) - 4:
        raise ValueError("precompiled_charsmap does not hold the table that it announces")
    if size > _MOST_BYTES:
        raise ValueError(f"precompiled_charsmap must have at most {_MOST_BYTES:,} bytes; it has {size:,}")
    units = np.frombuffer(table, "<u4", size // 4, 4).astype(np.int64)
    starts = _followed(units)
    texts = np.frombuffer(table, np.uint8, offset=4 + size)
    inside = starts[starts < texts.size]
    if (starts > texts.size).any() or (texts[inside] & 0xC0 == 0x80).any():
        raise ValueError("precompiled_charsmap must lead to texts of its own; it leads elsewhere")


def _followed(units: np.ndarray) -> np.ndarray:
    """Where the texts start that the trie leads to, each node met once."""
    met, starts = np.zeros(units.size, bool), [np.zeros(0, np.int64)]
    front = _offsets(units[:1])
    while front.size:
        if front.max() | 0xFF >= units.size:
            raise ValueError("precompiled_charsmap must stay within its trie; it leads out of it")
        front = front[~met[front]]
        now, front = front[:_AT_ONCE], front[_AT_ONCE:]
        met[now] = True
        below = now[:, None] ^ _LETTERS
        nodes = below[units[below] & _LABEL == _LETTERS]
        bases = nodes ^ _offsets(units[nodes])
        ends = bases[units[nodes] >> 8 & 1 == 1]
        if (ends >= units.size).any():
            raise ValueError("precompiled_charsmap must stay within its trie; it leads out of it")
        starts.append(units[ends] & _VALUE)
        front = np.union1d(front, bases)
    return np.concatenate(starts)


def _offsets(units: np.ndarray) -> np.ndarray:
    return units >> 10 << (units >> 6 & 8)
