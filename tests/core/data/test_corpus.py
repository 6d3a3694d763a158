"""Corpora: text, files, folders and ids, read where they lie."""

import hashlib
import math
import os
from pathlib import Path

import numpy as np
import pytest
from cases import assert_explains, python
from hypothesis import given, settings
from hypothesis import strategies as st

from palm import DataError
from palm.data import corpus
from palm.data.corpus import open_corpus
from palm.data.tokenizer import ByteTokenizer
from palm.data.windows import check_vocabulary, windows

TEXT = bytes(range(256)) * 3


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def contents(found):
    return bytes(found.read(0, len(found)).astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Files at several depths, an empty one, and hidden ones that are not part of the text."""
    files = {
        "b.txt": b"second",
        "a/z.txt": b"first",
        "a.txt": b"0th",
        "c.txt": b"",
        "d": b"\xff\n",
        ".hidden": b"no",
        ".git/config": b"no",
        "a/.x/y": b"no",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("data", [TEXT, "naïve €", np.arange(9, dtype=np.uint16)])
def test_what_is_in_memory_is_read_as_it_is(data):
    expected = list(data.encode() if isinstance(data, str) else data)
    found = open_corpus(data)
    ids = found.read(0, len(found))
    assert ids.dtype == np.int64
    assert ids.tolist() == expected
    assert found.read(2, 5).tolist() == expected[2:5]
    assert found.read(3, 3).shape == (0,)


def test_a_file_is_read_in_part(tmp_path):
    (tmp_path / "text").write_bytes(TEXT)
    found = open_corpus(tmp_path / "text")
    assert (len(found), found.name, found.bytes_per_token) == (768, str(tmp_path / "text"), 1.0)
    assert found.read(254, 258).tolist() == [254, 255, 0, 1]
    assert found.digest == sha256(TEXT) == open_corpus(TEXT).digest


def test_opening_a_huge_file_reads_none_of_it(tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**36)
        file.seek(2**35)
        file.write(b"here")
    found = open_corpus(tmp_path / "huge")
    assert len(found) == 2**36
    assert contents(found.slice(2**35 - 1, 2**35 + 5)) == b"\0here\0"
    check_vocabulary(found, 256)
    assert windows(found, seed=0, first=10**9, rows=2, length=4).shape == (2, 5)


def test_a_folder_is_its_files_by_relative_path_joined_with_newlines(folder):
    found = open_corpus(folder)
    assert contents(found) == b"0th\nfirst\nsecond\n\n\xff\n"
    assert found.bytes_per_token == 1.0


@settings(max_examples=50)
@given(st.data())
def test_any_part_of_several_files_is_that_part_of_their_text(tmp_path_factory, data):
    texts = data.draw(st.lists(st.binary(max_size=6), min_size=1, max_size=6).filter(any))
    folder = tmp_path_factory.mktemp("corpus")
    for number, text in enumerate(texts):
        (folder / str(number)).write_bytes(text)
    whole = b"\n".join(texts)
    found = open_corpus(folder)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    assert contents(found) == whole
    assert bytes(found.read(start, stop).astype(np.uint8)) == whole[start:stop]
    assert contents(found.slice(start, len(whole)).slice(0, stop - start)) == whole[start:stop]


def test_the_digest_of_a_folder_is_of_names_and_contents(folder):
    digests = [open_corpus(folder).digest]
    (folder / ".hidden").write_bytes(b"still no")
    digests.append(open_corpus(folder).digest)
    (folder / "b.txt").rename(folder / "bb.txt")
    digests.append(open_corpus(folder).digest)
    (folder / "bb.txt").write_bytes(b"Second")
    digests.append(open_corpus(folder).digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_folder_of_more_files_than_may_be_open_is_read(tmp_path):
    for number in range(400):
        (tmp_path / f"{number:03}").write_bytes(b"%03d" % number)
    code = """
import resource, sys
from pathlib import Path
from palm.data.windows import open_corpus
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
corpus = open_corpus(Path(sys.argv[1]))
print(len(corpus), sum(corpus.read(0, len(corpus)).tolist()), corpus.digest[:0])
"""
    run = python(code, str(tmp_path))
    assert run.stdout.split() == ["1599", str(sum(b"\n".join(b"%03d" % n for n in range(400))))], run.stderr


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64", "uint64", ">i2"])
def test_a_numpy_file_of_ids_is_read_where_it_lies(tmp_path, dtype):
    ids = np.array([3, 1, 100, 5], dtype)
    np.save(tmp_path / "ids.npy", ids)
    found = open_corpus(tmp_path / "ids.npy")
    assert not isinstance(found.parts[0], np.ndarray)
    assert found.read(1, 4).tolist() == [1, 100, 5]
    assert math.isnan(found.bytes_per_token)
    assert found.digest == sha256((tmp_path / "ids.npy").read_bytes())


def test_the_digest_of_an_array_is_of_its_ids_not_of_their_type():
    digests = [open_corpus(np.array(ids, t)).digest for ids in ([1, 2], [1, 3]) for t in ("i4", "u1", ">i8")]
    assert len(set(digests[:3])) == len(set(digests[3:])) == 1
    assert len(set(digests)) == 2


def test_a_corpus_is_opened_as_it_is():
    found = open_corpus(TEXT, name="bytes")
    assert open_corpus(found) is found
    assert found.name == "bytes"


def test_a_byte_tokenizer_is_no_tokenizer(tmp_path):
    (tmp_path / "text").write_bytes(b"\xff\xfe")
    found = open_corpus(tmp_path / "text", ByteTokenizer())
    assert found.read(0, 2).tolist() == [255, 254]
    assert found.digest == open_corpus(b"\xff\xfe").digest


def test_a_digest_is_computed_once_and_by_a_slice_shared(tmp_path):
    (tmp_path / "text").write_bytes(TEXT)
    found = open_corpus(tmp_path / "text")
    part = found.slice(10, 700).slice(5, 100)
    assert part.digest == f"{sha256(TEXT)}[15:110]"
    assert part.slice(0, 95).digest == part.digest
    (tmp_path / "text").unlink()
    assert found.digest == found.slice(0, 768).digest == sha256(TEXT)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 2), (0, 10), (10, 10)])
def test_nothing_is_read_beyond_the_ends(start, stop):
    found = open_corpus(TEXT).slice(7, 16)
    for ask in (found.read, found.slice):
        with pytest.raises(DataError) as raised:
            ask(start, stop)
        assert_explains(raised, "within 9 tokens", f"start={start}, stop={stop}", "a part that exists")


def test_a_file_that_changes_while_it_is_used_is_noticed(tmp_path):
    (tmp_path / "text").write_bytes(TEXT)
    found = open_corpus(tmp_path / "text")
    found.read(0, 5)
    (tmp_path / "text").write_bytes(TEXT[:100])
    with pytest.raises(DataError) as raised:
        found.read(0, 5)
    assert_explains(raised, "left alone while it is read", str(tmp_path / "text"), "open it again")
    (tmp_path / "text").unlink()
    for ask in (lambda: found.read(0, 5), lambda: found.digest):
        with pytest.raises(DataError, match="must be a readable file"):
            ask()


CHANGES = {
    "truncated": lambda file: os.truncate(file, 200),
    "emptied": lambda file: os.truncate(file, 0),
    "overwritten": lambda file: np.save(file, np.full(9000, 7, np.uint16)),
    "replaced": lambda file: (file.unlink(), np.save(file, np.full(9000, 7, np.uint16))),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "deleted": lambda file: file.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_numpy_file_that_changes_is_noticed_at_the_next_read(tmp_path, change):
    """A file that is mapped and then cut kills the process that reads it (SIGBUS)."""
    file = tmp_path / "ids.npy"
    np.save(file, np.arange(9000, dtype=np.uint16))
    found = open_corpus(file)
    assert found.read(8998, 9000).tolist() == [8998, 8999]
    CHANGES[change](file)
    with pytest.raises(DataError) as raised:
        found.read(0, 9000)
    words = "readable file" if change == "deleted" else "left alone while it is read"
    assert_explains(raised, words, str(file))


@pytest.mark.parametrize("kind", ["text", "ids.npy"])
def test_a_file_that_changes_in_the_middle_of_a_read_is_noticed(tmp_path, monkeypatch, kind):
    file = tmp_path / kind
    np.save(file, np.arange(9000, dtype=np.uint16)) if kind == "ids.npy" else file.write_bytes(TEXT)
    found = open_corpus(file)
    original = os.read

    def read(descriptor, length):
        piece = original(descriptor, length // 2)
        monkeypatch.undo()
        os.truncate(file, 5)
        return piece

    monkeypatch.setattr(os, "read", read)
    with pytest.raises(DataError, match="left alone while it is read"):
        found.read(0, 700)


def test_a_folder_of_more_files_than_a_process_may_open_is_read(tmp_path):
    for index in range(60):
        (tmp_path / f"{index:02}").write_bytes(b"x")
    code = """
import resource, sys
from pathlib import Path
from palm.data.corpus import open_corpus
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
print(len(open_corpus(Path(sys.argv[1])).read(0, 119)))
"""
    done = python(code, str(tmp_path))
    assert (done.stdout, done.stderr) == ("119\n", "")


def test_a_relative_path_stays_the_same_file_wherever_one_goes(tmp_path, monkeypatch):
    (tmp_path / "text").write_bytes(TEXT)
    monkeypatch.chdir(tmp_path)
    found = open_corpus(Path("text"))
    monkeypatch.chdir("/")
    assert (found.name, contents(found)) == ("text", TEXT)


@pytest.mark.parametrize("suffix", ["", ".npy"])
def test_what_is_missing_or_unreadable_is_named(tmp_path, suffix):
    path = tmp_path / f"text{suffix}"
    with pytest.raises(DataError) as raised:
        open_corpus(path)
    assert_explains(raised, "data must be a readable file", f"data={path}", "No such file")
    path.symlink_to(path)
    with pytest.raises(DataError, match="must be a readable file"):
        open_corpus(path)


def test_what_is_neither_file_nor_folder_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError) as raised:
        open_corpus(tmp_path / "pipe")
    assert_explains(raised, "data must be a file or a folder", f"data={tmp_path / 'pipe'}", "save it")


def test_a_str_that_names_a_file_is_taken_neither_for_it_nor_for_text(tmp_path):
    with pytest.raises(DataError) as raised:
        open_corpus(str(tmp_path))
    assert_explains(raised, "data must be a Path if it names a file", f"data={tmp_path}", "pass Path(…)")


@pytest.mark.parametrize("data", [{"train": [[1, 2]]}, {1, 2}, None, 5])
def test_data_of_another_type_is_refused(data):
    with pytest.raises(DataError) as raised:
        open_corpus(data)
    assert_explains(raised, "data must be a Path, text, bytes", type(data).__name__, "Pass one of these")


@pytest.mark.parametrize("names", [[], ["empty"], ["empty", "also"], [".hidden"]])
def test_a_folder_without_text_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"no" if name == ".hidden" else b"")
    with pytest.raises(DataError) as raised:
        open_corpus(tmp_path)
    assert_explains(raised, "data must be at least one byte long", f"data={tmp_path}", "It is empty")


def test_an_empty_text_or_file_is_refused(tmp_path):
    (tmp_path / "empty").touch()
    for data in (b"", "", tmp_path / "empty"):
        with pytest.raises(DataError, match="data must be at least one byte long"):
            open_corpus(data)


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (np.zeros((2, 2), int), "int64[2, 2]"),
        (np.zeros((), int), "int64[]"),
        (np.zeros(0, int), "int64[0]"),
        (np.zeros(3), "float64[3]"),
        (np.zeros(3, bool), "bool[3]"),
    ],
)
def test_an_array_that_is_no_row_of_ids_is_refused(tmp_path, ids, says):
    np.save(tmp_path / "ids.npy", ids)
    for data, name in ((ids, "ids"), (tmp_path / "ids.npy", "ids.npy")):
        with pytest.raises(DataError) as raised:
            open_corpus(data)
        assert_explains(raised, "data must be a 1-D array of integers", name, says, "Save the ids alone")


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint64"])
def test_negative_ids_are_refused_with_their_place(monkeypatch, dtype):
    monkeypatch.setattr(corpus, "PIECE", 3)
    ids = np.array([1, 2, 3, 4, -7, -8]).astype(dtype)
    with pytest.raises(DataError) as raised:
        open_corpus(ids)
    assert_explains(raised, "data must be ids of at least 0", "-7 at 4 of ids", "Look where")


def objects(path):
    np.save(path, np.array([{}, 1]), allow_pickle=True)


def archive(path):
    with path.open("wb") as file:
        np.savez(file, ids=np.arange(3))


def cut_short(path):
    np.save(path, np.arange(100))
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("write", [objects, archive, cut_short, lambda path: path.touch()])
def test_a_numpy_file_of_something_else_is_refused(tmp_path, write):
    write(tmp_path / "ids.npy")
    with pytest.raises(DataError) as raised:
        open_corpus(tmp_path / "ids.npy")
    assert_explains(raised, "data must be a", "got data=", "Save")
