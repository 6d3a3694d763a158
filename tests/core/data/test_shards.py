"""Folders of shards: one corpus of ids, read where they lie; whatever is not as it was written is refused."""

import hashlib
import os
import shutil
import time

import numpy as np
import pytest
from cases import assert_explains, python
from shards import TOKENIZER, seal, write_rows

from palm import DataError
from palm.data.corpus import open_corpus
from palm.data.sharding import write_shards
from palm.data.shards import JOURNAL, MANIFEST, shard_name
from palm.data.tokenizer import ByteTokenizer
from palm.data.tokenizer_file import FileTokenizer
from palm.data.windows import check_vocabulary, windows

ROWS = [np.array([5, 299, 0, 7]), np.array([], int), np.array([1, 2]), np.array([3] * 9)]
IDS = np.concatenate(ROWS)
ZERO = 64 * "0"


@pytest.fixture
def folder(tmp_path):
    return write_rows(tmp_path / "shards", ROWS, 300)


def test_shards_are_one_corpus_with_a_tokenizer_of_its_own(folder):
    found = open_corpus(folder)
    assert (len(found), found.name, found.bytes_per_token) == (15, str(folder), 2.0)
    assert found.read(0, 15).tolist() == IDS.tolist()
    assert found.read(2, 7).tolist() == found.slice(1, 9).read(1, 6).tolist() == [0, 7, 1, 2, 3]
    assert isinstance(found.tokenizer, FileTokenizer)
    assert found.tokenizer.content == TOKENIZER
    assert found.slice(1, 9).tokenizer is found.tokenizer
    assert (
        open_corpus(folder, FileTokenizer("mine.json", TOKENIZER)).tokenizer.digest == found.tokenizer.digest
    )


def test_the_digest_is_that_of_the_text_and_the_tokenizer(folder):
    whole = hashlib.sha256(f"{ZERO}/{hashlib.sha256(TOKENIZER).hexdigest()}".encode()).hexdigest()
    found = open_corpus(folder)
    assert found.digest == whole
    assert found.slice(1, 9).digest == f"{whole}[1:9]"


def test_the_vocabulary_is_known_without_a_look_at_the_ids(folder):
    found = open_corpus(folder)
    assert found.largest_possible == 299
    for index in range(len(ROWS)):
        (folder / shard_name(index)).unlink()
    check_vocabulary(found, 300)
    with pytest.raises(DataError, match="must be a readable file"):
        check_vocabulary(found, 299)


@pytest.mark.parametrize("other", [ByteTokenizer(), FileTokenizer("tokenizer.json", b"[]")])
def test_another_tokenizer_is_refused(folder, other):
    for data in (folder, open_corpus(folder), open_corpus(folder).slice(1, 4)):
        with pytest.raises(DataError) as raised:
            open_corpus(data, other)
        assert_explains(
            raised, "tokenizer must be the one", "t.json", str(folder), other.name, "Leave it out"
        )


def exchange(folder, one, other):
    (folder / shard_name(one)).rename(folder / "spare.npy")
    (folder / shard_name(other)).rename(folder / shard_name(one))
    (folder / "spare.npy").rename(folder / shard_name(other))


DAMAGE = {
    "missing": lambda folder: (folder / shard_name(2)).unlink(),
    "cut": lambda folder: os.truncate(folder / shard_name(3), 130),
    "longer": lambda folder: os.truncate(folder / shard_name(3), 1300),
    "empty": lambda folder: os.truncate(folder / shard_name(0), 0),
    "a folder": lambda folder: ((folder / shard_name(2)).unlink(), (folder / shard_name(2)).mkdir()),
    "a pipe": lambda folder: ((folder / shard_name(2)).unlink(), os.mkfifo(folder / shard_name(2))),
    "exchanged": lambda folder: exchange(folder, 0, 2),
    "the last one missing": lambda folder: (folder / shard_name(3)).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_shard_of_another_size_is_refused_at_once(folder, damage):
    DAMAGE[damage](folder)
    with pytest.raises(DataError) as raised:
        open_corpus(folder)
    assert_explains(raised, "data must be", str(folder / "shard-0000"))


def test_a_shard_of_other_bytes_is_refused_when_the_digest_is_asked_for(tmp_path):
    folder = write_rows(tmp_path / "shards", [np.arange(4), np.arange(4, 8)], 300)
    exchange(folder, 0, 1)
    found = open_corpus(folder)
    with pytest.raises(DataError) as raised:
        _ = found.digest
    assert_explains(raised, "shards as they were written", shard_name(0), "checksum differs", "Restore")


def test_ids_beyond_the_vocabulary_are_refused_when_they_are_read(tmp_path):
    folder = write_rows(tmp_path / "shards", [np.array([1, 300, 2])], 300)
    found = open_corpus(folder)
    assert found.read(0, 1).tolist() == [1]
    with pytest.raises(DataError) as raised:
        found.read(0, 3)
    assert_explains(raised, "ids below 300", f"300 in {folder / shard_name(0)}", "restore")


def test_a_shard_that_changes_is_noticed_at_the_next_read(folder):
    found = open_corpus(folder)
    shutil.copyfile(folder / shard_name(0), folder / "spare")
    os.replace(folder / "spare", folder / shard_name(0))
    assert found.read(4, 6).tolist() == [1, 2]
    with pytest.raises(DataError, match="left alone while it is read"):
        found.read(3, 5)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"format": "palm-shards", "version": 1}'])
def test_a_manifest_that_is_none_is_refused(folder, content):
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(DataError) as raised:
        open_corpus(folder)
    assert_explains(raised, MANIFEST)


def test_a_manifest_of_which_a_byte_has_changed_is_refused(folder):
    text = (folder / MANIFEST).read_text("utf-8")
    (folder / MANIFEST).write_text(text.replace('"num_tokens": 300', '"num_tokens": 301'), "utf-8")
    with pytest.raises(DataError) as raised:
        open_corpus(folder)
    assert_explains(raised, "as they were written", MANIFEST, "Its checksum differs")


def test_shards_without_their_manifest_are_no_text(folder):
    (folder / MANIFEST).unlink()
    with pytest.raises(DataError) as raised:
        open_corpus(folder)
    assert_explains(raised, f"with its {MANIFEST}", str(folder), "Restore")


@pytest.mark.parametrize("name", [MANIFEST, JOURNAL])
def test_shards_further_down_are_no_text(folder, name):
    (folder.parent / "text").touch()
    (folder / MANIFEST).rename(folder / name)
    for ask in (open_corpus, lambda path: write_shards(path, "bytes", path.with_name("out"))):
        with pytest.raises(DataError) as raised:
            ask(folder.parent)
        assert_explains(raised, "data must be text alone", str(folder.parent), f"their folder, {folder}")


def test_shards_that_are_not_all_written_are_no_corpus(folder):
    (folder / MANIFEST).rename(folder / JOURNAL)
    for name in [shard_name(index) for index in range(len(ROWS))]:
        (folder / name).unlink()
    with pytest.raises(DataError) as raised:
        open_corpus(folder)
    assert_explains(raised, "data must be complete", str(folder), "once more")


@pytest.mark.parametrize("content", [None, b"", b"{ }"])
def test_another_tokenizer_in_the_folder_is_refused(folder, content):
    (folder / "tokenizer.json").unlink()
    if content is not None:
        (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        open_corpus(folder)


ENTRY = {"length": 4, "bytes": 136, "sha256": ZERO}
HOSTILE = {
    "format": ["palm-checkpoint", None, ...],
    "version": [0, 2, "1", True, ...],
    "num_tokens": [0, -1, 256, 2**16 + 1, 2**32 + 1, 300.0, "300", None, ...],
    "dtype": ["uint8", "uint32", "int16", "object", ">u2", 2, None, ...],
    "shard_bytes": [-1, "x", ...],
    "text": [
        {},
        {"bytes": -1, "digest": ZERO},
        {"bytes": 1, "digest": "x"},
        {"bytes": 1.5, "digest": ZERO},
        ...,
    ],
    "sources": [[], {"a": 1}, {"a": "x"}, None, ...],
    "tokenizer": [
        {"name": "t", "digest": ZERO, "file": "../tokenizer.json"},
        {"name": "t", "digest": ZERO, "file": "/etc/passwd"},
        {"name": "t", "digest": ZERO, "file": None},
        {"name": "t", "digest": "bytes", "file": "tokenizer.json"},
        {"name": "t", "digest": ZERO, "file": "tokenizer.model"},
        {"name": 1, "digest": ZERO, "file": "tokenizer.json"},
        {"digest": ZERO},
        "bytes",
        ...,
    ],
    "shards": [
        [],
        {},
        [{**ENTRY, "length": 0, "bytes": 128}],
        [{**ENTRY, "length": 5}],
        [{**ENTRY, "length": -4}],
        [{**ENTRY, "length": 4.0}],
        [{**ENTRY, "bytes": 2**63}],
        [{**ENTRY, "length": 2**62, "bytes": 2**63 - 1}],
        [{**ENTRY, "sha256": "x"}],
        [{"length": 4, "bytes": 136}],
        [ENTRY] * 5,
        ["shard"],
        ...,
    ],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in HOSTILE for value in HOSTILE[name]])
def test_a_sealed_manifest_of_what_cannot_be_is_refused(folder, name, value):
    seal(folder, {name: value})
    with pytest.raises(DataError) as raised:
        open_corpus(folder)
    assert_explains(raised, str(folder))


def test_a_manifest_that_is_sealed_anew_is_read(folder):
    seal(folder, {})
    assert len(open_corpus(folder)) == 15


def test_opening_many_shards_is_quick_and_holds_none_of_them(tmp_path):
    """10^10 ids in two thousand sparse files."""
    folder = write_rows(tmp_path / "shards", [np.arange(4)], 300)
    shards = [{"length": 5 * 10**6, "bytes": 128 + 10**7, "sha256": ZERO}] * 2000
    for index, shard in enumerate(shards):
        with (folder / shard_name(index)).open("wb") as file:
            file.truncate(shard["bytes"])
    seal(folder, {"shards": shards})
    with (folder / shard_name(1999)).open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\x09\x01")
    code = """
import resource, sys, time
from pathlib import Path
from palm.data.corpus import open_corpus
from palm.data.windows import windows
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
corpus = open_corpus(Path(sys.argv[1]))
opened = time.process_time() - start
found = windows(corpus, seed=0, first=10**9, rows=500, length=1024)
read = time.process_time() - start - opened
more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(len(corpus), found.sum(), corpus.read(10**10 - 2, 10**10), opened, read, more)
"""
    run = python(code, str(folder))
    length, total, first, last, opened, read, more = run.stdout.replace("[", "").replace("]", "").split()
    assert (length, total, first, last) == (str(10**10), "0", "0", "265"), run.stderr
    assert float(opened) < 0.4
    assert float(read) < 0.5
    assert int(more) < 60_000  # KiB


def test_windows_of_a_large_corpus_take_no_longer_than_of_a_small_one(tmp_path):
    """A row of the windows is read in a time that does not depend on how many ids there are."""

    def seconds(size):
        file = tmp_path / f"{size}"
        with file.open("wb") as stream:
            stream.truncate(size)
        corpus, times = open_corpus(file), []
        for seed in range(5):
            start = time.process_time()
            windows(corpus, seed=seed, first=10**12, rows=200, length=64)
            times.append(time.process_time() - start)
        return min(times)

    assert seconds(2**42) < 3 * seconds(2**20) + 0.01
