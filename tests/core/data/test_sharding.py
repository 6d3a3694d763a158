"""Encoding a text into shards: the ids of the text, whatever happens on the way."""

import errno
import itertools
import json
import os

import numpy as np
import pytest
from cases import assert_explains
from disks import changes, fails, killed
from filelock import FileLock
from shards import Inline, inline

from palm import DataError
from palm.data import pieces, sharding
from palm.data.corpus import open_corpus
from palm.data.shard_pool import hash_job
from palm.data.shard_worker import do
from palm.data.sharding import LOCK, write_shards
from palm.data.shards import JOURNAL, MANIFEST, shard_name

TEXTS = {
    "b.txt": b"the palm grows\n" * 9,
    "a/z.txt": b"by the sea\n" * 5,
    "c": b"",
    "d": b"",
    "\udcff": b"\xff\xfe and no line",
}
WHOLE = [b"by the sea\n" * 5, b"the palm grows\n" * 9, b"", b"", b"\xff\xfe and no line"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Pieces of a line or two, and shards of a few pieces, written in this process."""
    monkeypatch.setattr(pieces, "PIECE", 8)
    inline(monkeypatch, 40)


@pytest.fixture
def text(tmp_path):
    for name, content in TEXTS.items():
        (tmp_path / "text" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "text" / name).write_bytes(content)
    return tmp_path / "text"


def files(folder):
    """Everything in a folder that does not show who wrote it."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK}


def assert_same_corpus(out, text):
    found, whole = open_corpus(out), open_corpus(text)
    assert found.read(0, len(found)).tolist() == whole.read(0, len(whole)).tolist()
    assert (found.digest, found.bytes_per_token) == (whole.digest, whole.bytes_per_token)


def test_shards_are_the_ids_of_the_text(text, tmp_path):
    assert write_shards(text, "bytes", tmp_path / "out") == tmp_path / "out"
    assert_same_corpus(tmp_path / "out", text)
    found = open_corpus(tmp_path / "out")
    assert bytes(found.read(0, len(found)).astype(np.uint8)) == b"\n".join(WHOLE)
    sizes = [part.size for part in found.parts]
    assert min(sizes[:-1]) >= 40
    assert len(sizes) == 5
    assert np.load(tmp_path / "out" / shard_name(0)).tolist() == found.read(0, sizes[0]).tolist()
    assert sorted(files(tmp_path / "out")) == [MANIFEST, *map(shard_name, range(5))]


def test_a_single_file_is_a_text_too(text, tmp_path):
    write_shards(str(text / "b.txt"), "bytes", tmp_path / "out")
    assert_same_corpus(tmp_path / "out", text / "b.txt")


def test_the_manifest_says_of_what_the_shards_are(text, tmp_path):
    manifest = json.loads((write_shards(text, "bytes", tmp_path / "out") / MANIFEST).read_text("utf-8"))
    assert manifest["format"] == "palm-shards"
    assert manifest["tokenizer"] == {"name": "bytes", "digest": "bytes", "file": None}
    assert manifest["text"]["bytes"] == len(b"\n".join(WHOLE))
    assert set(manifest["sources"]) == set(TEXTS)
    assert manifest["sources"]["c"] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_many_small_files_share_a_shard_up_to_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("palm.data.shard_plan.SHARD_FILES", 3)
    (tmp_path / "text").mkdir()
    for index in range(8):
        (tmp_path / "text" / str(index)).write_bytes(b"x")
    write_shards(tmp_path / "text", "bytes", tmp_path / "out")
    assert [part.size for part in open_corpus(tmp_path / "out").parts] == [6, 6, 3]
    assert_same_corpus(tmp_path / "out", tmp_path / "text")


def test_progress_is_told_in_bytes_of_text(text, tmp_path):
    told = []
    write_shards(text, "bytes", tmp_path / "out", on_progress=lambda *step: told.append(step))
    for what, total in (("reading", sum(map(len, TEXTS.values()))), ("encoding", len(b"\n".join(WHOLE)))):
        done = [step[1] for step in told if step[0] == what]
        assert (done[0], done[-1]) == (0, total)
        assert done == sorted(done)
        assert {step[2] for step in told if step[0] == what} == {total}


def test_a_second_time_everything_is_verified_and_nothing_written(text, tmp_path, monkeypatch):
    out = write_shards(text, "bytes", tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in out.iterdir() if path.name != LOCK}
    asked = []
    monkeypatch.setattr(Inline, "run", lambda self, jobs, run=Inline.run: run(self, noting(jobs, asked)))
    write_shards(text, "bytes", out)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not any("spans" in job for job in asked)
    (out / shard_name(1)).write_bytes((out / shard_name(1)).read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match="shards as they were written"):
        write_shards(text, "bytes", out)


def noting(jobs, asked):
    for job in jobs:
        asked.append(job)
        yield job


def test_killed_at_any_moment_it_goes_on_to_the_same_files(text, tmp_path, monkeypatch):
    monkeypatch.setattr("palm.data.shard_plan.SHARD_BYTES", 120)
    unbroken = files(write_shards(text, "bytes", tmp_path / "unbroken"))
    total = len(changes(lambda: write_shards(text, "bytes", tmp_path / "counted")))
    assert total > 30
    for at in range(1, total + 1):
        out = tmp_path / f"out{at}"
        assert killed(lambda out=out: write_shards(text, "bytes", out), at)
        if (out / JOURNAL).exists() and not (out / MANIFEST).exists():
            with pytest.raises(DataError, match="data must be complete"):
                open_corpus(out)
        write_shards(text, "bytes", out)
        assert files(out) == unbroken, at
    assert not killed(lambda: write_shards(text, "bytes", tmp_path / "last"), total + 1)


def test_killed_twice_it_goes_on_too(text, tmp_path):
    unbroken = files(write_shards(text, "bytes", tmp_path / "unbroken"))
    for first, second in itertools.product((20, 43), (8, 25)):
        out = tmp_path / f"{first}-{second}"
        killed(lambda out=out: write_shards(text, "bytes", out), first)
        killed(lambda out=out: write_shards(text, "bytes", out), second)
        write_shards(text, "bytes", out)
        assert files(out) == unbroken


def interrupt(patch, at):
    """Let the writing end when so many shards are finished."""
    count = itertools.count()

    def die(*arguments, finished=sharding.finished):
        if next(count) == at:
            raise KeyboardInterrupt
        finished(*arguments)

    patch.setattr(sharding, "finished", die)


@pytest.fixture
def half(text, tmp_path, monkeypatch):
    """Shards that were interrupted after the third."""
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            write_shards(text, "bytes", tmp_path / "out")
    return tmp_path / "out"


def made(monkeypatch, text, out):
    """Go on; the shards that were made."""
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(Inline, "run", lambda self, jobs, run=Inline.run: run(self, noting(jobs, asked)))
        write_shards(text, "bytes", out)
    return [job["job"] for job in asked if "spans" in job]


def test_finished_shards_are_kept(half, text, monkeypatch):
    assert made(monkeypatch, text, half) == [3, 4]
    assert_same_corpus(half, text)


LOSSES = {
    "a byte": lambda file: file.write_bytes(file.read_bytes()[:-1] + b"?"),
    "its end": lambda file: os.truncate(file, 130),
    "all": lambda file: file.unlink(),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_finished_shard_that_has_lost_something_is_made_again(half, text, monkeypatch, loss):
    LOSSES[loss](half / shard_name(1))
    assert made(monkeypatch, text, half) == [1, 3, 4]
    assert_same_corpus(half, text)


@pytest.mark.parametrize(
    ("old", "new", "again"),
    [
        ('"length": ', '"length": 1', [0, 1, 2, 3, 4]),
        ('"sha256": "', '"sha256": "0', [0, 1, 2, 3, 4]),
        ('"shard": 1}', '"shard": 9}', [1, 3, 4]),
        ('"shard": 1}', "}", [1, 3, 4]),
    ],
)
def test_a_line_of_the_journal_that_says_something_else_is_not_believed(
    half, text, monkeypatch, old, new, again
):
    about, *lines = (half / JOURNAL).read_text("utf-8").splitlines(keepends=True)
    (half / JOURNAL).write_text(about + "".join(lines).replace(old, new), "utf-8")
    assert made(monkeypatch, text, half) == again
    assert_same_corpus(half, text)


def test_half_a_line_of_the_journal_is_left_out_and_spoils_no_other(half, text, monkeypatch):
    with (half / JOURNAL).open("ab") as journal:
        journal.write(b'{"shard": 3, "len')
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            write_shards(text, "bytes", half)
    assert made(monkeypatch, text, half) == [4]
    assert_same_corpus(half, text)


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b"\xff"])
def test_a_journal_that_is_none_is_refused(half, text, content):
    (half / JOURNAL).write_bytes(content)
    with pytest.raises(DataError) as raised:
        write_shards(text, "bytes", half)
    assert_explains(raised, JOURNAL, "as it was written", "delete it")


OTHERS = {
    "another byte": lambda text: (text / "b.txt").write_bytes(b"The" + TEXTS["b.txt"][3:]),
    "another file": lambda text: (text / "b2").write_bytes(b"x"),
    "a file less": lambda text: (text / "b.txt").unlink(),
    "another name": lambda text: (text / "b.txt").rename(text / "b2"),
}


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("change", OTHERS)
def test_shards_of_another_text_are_refused_and_left_alone(half, text, change, is_whole):
    if is_whole:
        write_shards(text, "bytes", half)
    before = files(half)
    OTHERS[change](text)
    with pytest.raises(DataError) as raised:
        write_shards(text, "bytes", half)
    assert_explains(raised, "out must be new", f"out={half}", "text differs in b", "Choose another folder")
    assert files(half) == before


def test_shards_of_other_settings_are_refused(half, text, monkeypatch):
    monkeypatch.setattr("palm.data.shard_plan.SHARD_BYTES", 41)
    with pytest.raises(DataError) as raised:
        write_shards(text, "bytes", half)
    assert_explains(raised, "out must be new", f"out={half}", "shard_bytes is 40", "Choose another folder")


def test_a_folder_with_something_else_is_refused(text, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(DataError) as raised:
        write_shards(text, "bytes", tmp_path / "out")
    assert_explains(raised, "out must be a new or empty folder", f"out={tmp_path / 'out'}", "another folder")
    with pytest.raises(DataError, match="out must be a writable folder"):
        write_shards(text, "bytes", tmp_path / "out" / "mine")


@pytest.mark.parametrize("inside", ["", "out", "a/out"])
def test_a_folder_within_the_text_is_refused(text, inside):
    with pytest.raises(DataError) as raised:
        write_shards(text, "bytes", text / inside)
    assert_explains(raised, "out must be outside of data", f"out={text / inside}", "another folder")


def test_two_do_not_write_to_one_folder(text, tmp_path):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / LOCK), pytest.raises(DataError) as raised:
        write_shards(text, "bytes", tmp_path / "out")
    assert_explains(raised, "out must have one writer", f"out={tmp_path / 'out'}", "Wait for it")


def test_a_text_that_changes_meanwhile_is_noticed(text, tmp_path, monkeypatch):
    def begin(*arguments, begin=sharding.begin):
        (text / "b.txt").write_bytes(TEXTS["b.txt"][1:])
        return begin(*arguments)

    monkeypatch.setattr(sharding, "begin", begin)
    with pytest.raises(DataError) as raised:
        write_shards(text, "bytes", tmp_path / "out")
    assert_explains(raised, "left alone while it is read", str(text / "b.txt"), "It has changed")


def test_a_text_that_changes_while_it_is_hashed_is_noticed(text):
    job = hash_job("b", sharding.sources_of(text)["b.txt"])
    os.utime(text / "b.txt", ns=(1, 1))
    assert "left alone while it is read" in do(job, print)["refused"]
    (text / "b.txt").unlink()
    assert "must be a readable file" in do(job, print)["refused"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_disk_that_fails_is_named_and_the_same_command_goes_on(text, tmp_path, error):
    unbroken = files(write_shards(text, "bytes", tmp_path / "unbroken"))
    total = len(changes(lambda: write_shards(text, "bytes", tmp_path / "counted")))
    raised = []
    for at in range(1, total + 1, 5):
        out = tmp_path / f"out{at}"
        found = fails(lambda out=out: write_shards(text, "bytes", out), at, error)
        if found is not None:  # what only tidies up may fail
            assert isinstance(found, DataError), repr(found)
            assert f"out must be a writable folder; got out={out}: {os.strerror(error)}" in str(found)
            raised.append(found)
        write_shards(text, "bytes", out)
        assert files(out) == unbroken
    assert len(raised) > 5


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.mkdir(), "at least one byte long"),
        (lambda path: path.touch(), "at least one byte long"),
        (lambda path: None, "readable file or folder"),
        (os.mkfifo, "readable file or folder"),
        (lambda path: (path.mkdir(), (path / MANIFEST).touch()), "text to tokenize"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, make, told):
    make(tmp_path / "text")
    with pytest.raises(DataError) as raised:
        write_shards(tmp_path / "text", "bytes", tmp_path / "out")
    assert_explains(raised, f"data must be {'a ' * told.startswith('read')}{told}", str(tmp_path / "text"))
    assert not (tmp_path / "out").exists()


def test_ids_are_no_text(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(5))
    with pytest.raises(DataError, match="text to tokenize"):
        write_shards(tmp_path / "ids.npy", "bytes", tmp_path / "out")


def test_more_than_a_manifest_can_name_is_refused(text, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("palm.data.shard_plan.MOST_SHARDS", 3)
        with pytest.raises(DataError, match="text for at most 3 shards"):
            write_shards(text, "bytes", tmp_path / "out")
    monkeypatch.setattr(sharding, "MOST_BYTES", 500)
    with pytest.raises(DataError, match="no more files than one manifest can name"):
        write_shards(text, "bytes", tmp_path / "out")


def test_workers_are_at_least_one(text, tmp_path):
    with pytest.raises(DataError, match="workers must be at least 1; got workers=0"):
        write_shards(text, "bytes", tmp_path / "out", workers=0)
