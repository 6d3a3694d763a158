"""Which text goes into which shard: that depends on the text alone, not on who writes them, or how often."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from palm.data.files import File, open_file, refusal
from palm.data.pieces import Span, cuts, spans_of
from palm.data.shards import is_shards, texts_below

# A shard has at least so many bytes of text, unless it has so many files; a folder has so many shards.
SHARD_BYTES, SHARD_FILES, MOST_SHARDS = 1 << 26, 1 << 14, 1 << 17


def sources_of(path: Path) -> dict[str, File]:
    """The files of text by name, in the order of `open_corpus`. Raises `DataError`."""
    if path.is_dir():
        if is_shards(path):
            raise refusal("text to tokenize", path, "These are shards already: train on them.")
        found = texts_below(path)
    else:
        if path.suffix == ".npy":
            raise refusal("text to tokenize", path, "These are ids already: train on them.")
        found = {path.name: open_file(path)}
    size = sum(file.size for file in found.values())
    if not size:
        raise refusal("at least one byte long", path, "It is empty: use another file or folder.")
    if size // SHARD_BYTES + len(found) // SHARD_FILES > MOST_SHARDS:
        told = f"{path} of {size:,} bytes in {len(found):,} files"
        raise refusal(f"text for at most {MOST_SHARDS:,} shards", told, "Tokenize parts of it one by one.")
    return found


def plan(texts: Sequence[File]) -> Iterator[list[Span]]:
    """The text of each shard: whole pieces, until there is enough."""
    spans: list[Span] = []
    size = 0
    for span in spans_of(texts):
        start = at = 0
        for stop in cuts(span):
            size, at = size + stop - at, stop
            if size >= SHARD_BYTES:
                yield [*spans, span._replace(start=start, stop=at)]
                spans, size, start = [], 0, at
        if at > start:
            spans.append(span._replace(start=start))
        if len(spans) == SHARD_FILES:
            yield spans
            spans, size = [], 0
    if spans:
        yield spans
