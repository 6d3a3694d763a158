"""Documents of token ids, one at a time: a list, rows of Hugging Face's datasets, any map-style dataset."""

from __future__ import annotations

import hashlib
import zlib
from array import array
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from palm.data.files import refusal

_FIELD = "input_ids"


class Items(Protocol):
    """What `Documents` reads: any map-style dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Documents:
    """The ids of all items, laid end to end as a part of a corpus; each item is read when it is asked for.

    An item is a 1-D array of ids, or a mapping that has one as `input_ids`. All are read once at first, for
    their lengths and check sums. `below` exceeds the largest id, `digest` the SHA-256 of all ids as int64.
    Raises `DataError`, naming the item, for one that is not ids of at least 0, or for no ids at all.
    """

    dtype: np.dtype[Any] = np.dtype(np.int64)

    def __init__(self, items: Items, name: str) -> None:
        self._items, self._name = items, name
        ends, sums, content = array("q"), array("I"), hashlib.sha256()
        self.size = self.below = 0
        for index in range(len(items)):
            ids = self._ids(index)
            self.size += len(ids)
            self.below = max(self.below, int(ids.max(initial=-1)) + 1)
            ends.append(self.size)
            sums.append(zlib.crc32(ids.data))
            content.update(ids.data)
        if not self.size:
            raise refusal("documents of at least one id", name, "They are empty: use others.")
        self._ends, self._sums = np.frombuffer(ends, np.int64), sums
        self.digest = content.hexdigest()

    def __getitem__(self, part: slice, /) -> np.ndarray:
        """The ids of a slice that has a start and a stop. Raises `DataError` if an item has changed."""
        start, stop = part.start, part.stop
        index = int(np.searchsorted(self._ends, start, side="right"))
        found = [np.empty(0, np.int64)]
        while start < stop:
            ids, first = self._ids(index), self._first(index)
            if first + len(ids) != self._ends[index] or zlib.crc32(ids.data) != self._sums[index]:
                which = f"item {index} of {self._name}"
                raise refusal("left alone while it is read", which, "It has changed: open it again.")
            found.append(ids[start - first : stop - first])
            start, index = first + len(ids), index + 1
        return np.concatenate(found)

    def place(self, at: int) -> str:
        """Where the id at that position is, in words."""
        index = int(np.searchsorted(self._ends, at, side="right"))
        return f"{at - self._first(index)} of item {index} of {self._name}"

    def _first(self, index: int) -> int:
        return int(self._ends[index - 1]) if index else 0

    def _ids(self, index: int) -> np.ndarray:
        which = f"item {index} of {self._name}"
        try:
            item = self._items[index]
            ids = np.asarray(item[_FIELD] if isinstance(item, Mapping) else item)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            fix = (
                f"It raised {type(error).__name__}: {error}. Encode text first, or rename the column of ids."
            )
            raise refusal(f"items that are ids, or mappings with {_FIELD!r}", which, fix) from error
        if ids.ndim != 1 or (ids.dtype.kind not in "iu" and len(ids)):
            found = f"{which}, {ids.dtype}{list(ids.shape)}"
            raise refusal("items that are 1-D arrays of integers", found, "Give each document's ids alone.")
        wide = np.ascontiguousarray(ids, "<i8")
        if len(wide) and wide.min() < 0:
            at = int(np.argmin(wide))
            raise refusal("ids of at least 0", f"{wide[at]} at {at} of {which}", "Look where it was made.")
        return wide
