"""What is written is the old or the new as a whole, whenever the process dies or the disk fails."""

import errno
import os
import stat
from pathlib import Path

import pytest
from cases import assert_same_bits, draw_weights, small
from disks import changes, fails, killed

from palm import CheckpointError, PalmError
from palm.checkpoint.checkpoint import load_arrays, save_arrays
from palm.cli import report
from palm.files import hidden, write
from palm.files.hidden import clear, delete, recover
from palm.files.write import (
    append,
    new_folder,
    opened,
    put_in_place,
    remedy,
    replace_files,
    write_file,
)

CONFIG = small()
OLD, NEW = (draw_weights(CONFIG, seed) for seed in (0, 1))
BOTH = pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)


def is_old(path: Path) -> bool:
    """Whether the checkpoint is the old one; if not it must be the new one, bit for bit."""
    arrays = load_arrays(path)[1]
    old = arrays["norm"].tobytes() == OLD["norm"].tobytes()
    assert_same_bits(arrays, OLD if old else NEW)
    return old


@BOTH
def test_a_save_that_is_killed_at_any_change_leaves_the_old_or_the_new_and_the_next_one_clears_up(
    tmp_path, exchange
):
    path = tmp_path / "model"
    found, at = [], 0
    while True:
        at += 1
        save_arrays(CONFIG, OLD, path, overwrite=True)
        if not killed(lambda: save_arrays(CONFIG, NEW, path, overwrite=True), at, exchange=exchange):
            break
        found.append(is_old(path))
        save_arrays(CONFIG, OLD, path, overwrite=True)
        assert [entry.name for entry in tmp_path.iterdir()] == ["model"], at
    assert found == sorted(found, reverse=True)  # first always the old, then always the new
    assert {*found} == {True, False}
    assert len(found) > 15


def test_without_an_exchange_there_is_a_moment_in_which_only_recovery_helps(tmp_path):
    """The twin of the test above: it kills there too."""
    path, gone = tmp_path / "model", 0
    for at in range(1, 100):
        save_arrays(CONFIG, OLD, path, overwrite=True)
        if not killed(lambda: save_arrays(CONFIG, NEW, path, overwrite=True), at, exchange=False):
            break
        gone += not path.exists()
    assert gone == 1


def test_a_new_checkpoint_of_a_save_that_is_killed_is_whole_or_absent(tmp_path):
    path = tmp_path / "model"
    at = 1
    while killed(lambda: save_arrays(CONFIG, NEW, path), at):
        if path.exists():
            assert not is_old(path)
            delete(path)
        save_arrays(CONFIG, NEW, path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["model"], at
        delete(path)
        at += 1
    assert at > 15


@BOTH
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_a_disk_that_fails_at_any_change_of_a_save_leaves_the_old_or_the_new(tmp_path, error, exchange):
    path = tmp_path / "model"
    save_arrays(CONFIG, OLD, path)
    count = len(changes(lambda: save_arrays(CONFIG, OLD, path, overwrite=True)))
    for at in range(1, count + 1):
        raised = fails(lambda: save_arrays(CONFIG, NEW, path, overwrite=True), at, error, exchange=exchange)
        if raised is None:
            assert not is_old(path)
        else:
            assert isinstance(raised, CheckpointError)
            assert remedy(OSError(error, "")) in str(raised)
            is_old(path)
        save_arrays(CONFIG, OLD, path, overwrite=True)
        assert [entry.name for entry in tmp_path.iterdir()] == ["model"], at


def reports(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("a.html", "a.json")]


def test_files_that_are_replaced_are_each_the_old_or_the_new_whenever_the_process_dies(tmp_path):
    files = [tmp_path / name for name in ("a.html", "a.json")]
    old, new = (dict.fromkeys(files, text * 5000) for text in (b"old", b"new"))
    at, found = 1, []
    replace_files(old)
    while killed(lambda: replace_files(new), at):
        found.append(tuple(content[:3] for content in reports(tmp_path)))
        assert {len(content) for content in reports(tmp_path)} == {15000}
        replace_files(old)
        assert {entry.name for entry in tmp_path.iterdir()} == {"a.html", "a.json"}
        at += 1
    assert {(b"old", b"old"), (b"new", b"old"), (b"new", b"new")} == {*found}


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_a_report_on_a_failing_disk_is_the_old_one_or_the_new_one(tmp_path, error, monkeypatch):
    monkeypatch.setattr(report, "page", lambda found: found["outcome"] * 5000)
    monkeypatch.setattr(report, "print_report", lambda *_: None)
    old, new = ({"outcome": outcome, "run": {}} for outcome in ("agree", "differ"))
    report.show(old, tmp_path)
    first = [file.read_bytes() for file in sorted(tmp_path.iterdir())]
    for at in range(1, len(changes(lambda: report.show(old, tmp_path))) + 1):
        raised = fails(lambda: report.show(new, tmp_path), at, error)
        names = sorted(entry.name for entry in tmp_path.iterdir())
        assert names == ["report.html", "report.json"]
        if raised is None:
            continue
        assert isinstance(raised, PalmError)
        assert remedy(OSError(error, "")) in str(raised)
        for file, content in zip(sorted(tmp_path.iterdir()), first, strict=True):
            assert file.read_bytes() == content or b"differ" in file.read_bytes()
        report.show(old, tmp_path)


def test_what_is_still_written_is_neither_cleared_away_nor_taken_back(tmp_path):
    path = tmp_path / "model"
    with new_folder(path) as folder:
        clear(path)
        recover(path)
        assert folder.is_dir()
        assert not path.exists()
    assert list(tmp_path.iterdir()) == []


USERS = [".model.tmp-0123", ".model.tmp", ".model.old-0123456789abcdef.bak", "model.tmp-0123456789abcdef"]


def test_nothing_of_the_users_is_cleared_away(tmp_path):
    path = tmp_path / "model"
    save_arrays(CONFIG, OLD, path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "notes").write_text("notes")
    for name in USERS:
        (tmp_path / name).mkdir()
    for kind in ("tmp", "old"):
        (tmp_path / f".model.{kind}-0123456789abcdef").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".other.tmp-0123456789abcdef").mkdir()
    before = {entry.name for entry in tmp_path.iterdir()}
    (tmp_path / ".model.tmp-00000000000000ff").mkdir()
    save_arrays(CONFIG, NEW, path, overwrite=True)
    assert {entry.name for entry in tmp_path.iterdir()} == before
    assert (tmp_path / "elsewhere" / "notes").read_text() == "notes"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_every_file_has_the_mode_that_the_umask_says(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        save_arrays(CONFIG, OLD, tmp_path / "model")
        replace_files({tmp_path / "report.json": b"{}"})
    finally:
        os.umask(before)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {mode}
    assert len(files) == 4
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o777 & ~mask


def test_a_file_keeps_the_mode_that_somebody_gave_it(tmp_path):
    (tmp_path / "report.json").touch(0o600)
    replace_files({tmp_path / "report.json": b"{}"})
    assert stat.S_IMODE((tmp_path / "report.json").stat().st_mode) == 0o600


def test_a_link_to_a_file_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "link").symlink_to("file")
    for content in (b"one", b"two"):
        replace_files({tmp_path / "link": content})
        assert (tmp_path / "file").read_bytes() == content
    assert (tmp_path / "link").is_symlink()


def test_a_device_is_written_to_and_stays(tmp_path):
    replace_files({Path("/dev/null"): b"x"})
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("name", ["x" * 250, "é" * 120, "x\udcff"])
def test_a_name_may_be_as_long_and_as_odd_as_the_system_allows(tmp_path, name):
    replace_files({tmp_path / name: b"x"})
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_line_is_appended_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "log"
    append(file, b"one\n")
    assert fails(lambda: append(file, b"two\n"), 2, errno.ENOSPC).errno == errno.ENOSPC
    assert file.read_bytes() == b"one\n"
    append(file, b"two\n")
    assert file.read_bytes() == b"one\ntwo\n"


def test_names_are_exchanged_in_one_step_and_where_that_cannot_be_in_two(tmp_path, monkeypatch):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.symlink_to("nowhere")
    assert write._exchange(one, other)
    assert one.is_symlink()
    assert other.is_dir()
    with pytest.raises(FileNotFoundError):
        write._exchange(one, tmp_path / "none")
    monkeypatch.setattr(write.sys, "platform", "darwin")
    assert not write._exchange(one, other)


def test_what_cannot_be_locked_is_never_taken_for_abandoned(tmp_path, monkeypatch):
    left = tmp_path / ".model.tmp-0123456789abcdef"
    left.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(hidden, "fcntl", None)
        clear(tmp_path / "model")
        assert left.exists()
        with new_folder(tmp_path / "model") as folder:
            put_in_place(folder, tmp_path / "model")
    clear(tmp_path / "model")
    assert not left.exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errno.ENOSPC, "Make room"),
        (errno.EDQUOT, "Make room"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission"),
        (errno.EFBIG, "ulimit"),
        (errno.EIO, "disk fails"),
        (errno.ENAMETOOLONG, "shorter"),
        (errno.ENOTDIR, "Choose another path"),
    ],
)
def test_the_remedy_fits_the_cause(error, words):
    assert words in remedy(OSError(error, os.strerror(error)))


def test_saving_works_where_the_system_takes_no_advice(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    monkeypatch.setattr(write, "_WINDOW", 100)
    assert_same_bits(load_arrays(save_arrays(CONFIG, OLD, tmp_path / "model"))[1], OLD)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="macOS and Windows take no such advice")
def test_what_is_written_goes_to_the_disk_meanwhile_and_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "_WINDOW", 100)
    monkeypatch.setattr(write, "_SMALL", 0)
    spans, original = [], os.posix_fadvise

    def spied(descriptor, first, length, advice):
        assert advice == os.POSIX_FADV_DONTNEED
        spans.append((first, first + length, os.fstat(descriptor).st_size))
        original(descriptor, first, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", spied)
    content = bytes(range(250)) * 4
    with opened(tmp_path / "file") as add:
        for first in range(0, len(content), 50):
            add(content[first : first + 50])
    assert (tmp_path / "file").read_bytes() == content
    assert all(last == size for _, last, size in spans)  # never what is not there yet
    told = [sum(first <= byte < last for first, last, _ in spans) for byte in range(len(content))]
    assert told == [2] * 900 + [1] * 100  # once to write it out, and again to forget it
    spans.clear()
    write_file(tmp_path / "small", content[:99])
    assert spans == []


def test_small_parts_are_written_together_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "_SMALL", 10)
    sizes, original = [], os.write
    monkeypatch.setattr(os, "write", lambda at, some: sizes.append(len(some)) or original(at, some))
    parts = [bytes([i]) * size for i, size in enumerate((3, 4, 3, 1, 11, 10, 2, 50, 5, 5, 0))]
    with opened(tmp_path / "file") as add:
        for part in parts:
            add(part)
    assert (tmp_path / "file").read_bytes() == b"".join(parts)
    assert sizes == [10, 1, 11, 10, 2, 50, 10]


def test_a_pipe_is_written_to_whatever_its_length(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "_WINDOW", 100)
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_file(tmp_path / "pipe", bytes(500))
        assert os.read(reader, 1000) == bytes(500)
    finally:
        os.close(reader)
