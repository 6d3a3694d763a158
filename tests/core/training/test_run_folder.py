"""A run's folder has one writer, and survives kills, torn lines and flipped bytes."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from cases import assert_explains
from disks import fails, killed
from filelock import FileLock
from run_settings import CONTENT

from palm import RunError
from palm.checkpoint.manifest import TRAINING
from palm.checkpoint.tokenizer import kept_file
from palm.data.tokenizer_file import FileTokenizer, read_tokenizer_file
from palm.files.write import remedy
from palm.recipes import Recipe
from palm.training.lock import LOCK
from palm.training.run_folder import METRICS, SAMPLES, SETTINGS, STARTING, Run

WRITTEN = {"format": "palm-run", "version": 1, **CONTENT}


def checkpoint(run: Run, step: int, val_loss: float | None = None) -> Path:
    """Something that looks like the checkpoint of a step."""
    path = run.path_of(step)
    path.mkdir()
    (path / TRAINING).write_text(json.dumps({"step": step, "val_loss": val_loss}))
    (path / "weights").write_text("numbers")
    return path


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder by its relative path, with the bytes of files; not the lock's file."""
    return {
        str(entry.relative_to(folder)): entry.read_bytes() if entry.is_file() else None
        for entry in folder.rglob("*")
        if entry.name != LOCK
    }


def names(folder: Path) -> set[str]:
    """What is in the folder of a run that has been locked once, besides the lock's file."""
    found = {entry.name for entry in folder.iterdir()}
    assert LOCK in found
    return found - {LOCK}


HOLD = """
import sys
from pathlib import Path
from palm.training.run_folder import Run
with Run(Path(sys.argv[1])).locked(new=sys.argv[2] == "new"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(path: Path, kind: str = "old"):
    """Another process that holds the folder's lock."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate(timeout=30)


def test_a_second_writer_is_refused_until_the_first_one_is_killed(run):
    before = contents(run.path)
    with held_elsewhere(run.path) as holder:
        for new in (False, True):
            with pytest.raises(RunError) as raised, run.locked(new=new):
                pytest.fail("two processes write one run")
            words = "run must have one writer", f"run={run.path}", "another process", "Wait for it"
            assert_explains(raised, *words)
        assert contents(run.path) == before
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=30)
        with run.locked():
            pass


def test_a_second_writer_clears_nothing_of_the_first_ones_away(tmp_path):
    run = Run(tmp_path / "run")
    with held_elsewhere(run.path, "new"):
        (run.path / ".step-00000000.tmp-0123").mkdir()
        run.path_of(0).mkdir()
        before = contents(run.path)
        with pytest.raises(RunError, match="run must have one writer"), run.locked(new=True):
            pytest.fail("two processes write one run")
        assert contents(run.path) == before


def test_the_lock_is_free_again_after_an_error_and_closes_its_descriptor(run):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), run.locked():
            raise ZeroDivisionError
    with run.locked(), pytest.raises(RunError, match="one writer"), run.locked():
        pytest.fail("one process writes a run twice")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_run_in_a_folder_that_is_read_only_is_refused(run, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(RunError) as raised, run.locked():
        pytest.fail("it cannot be locked")
    assert_explains(raised, "run must be a writable folder", f"run={run.path}", "Permission denied")


def test_a_thread_that_writes_keeps_the_others_out(run):
    def locked_in_a_thread():
        with run.locked():
            pass

    with ThreadPoolExecutor(1) as threads:
        with run.locked(), pytest.raises(RunError, match="run must have one writer"):
            threads.submit(locked_in_a_thread).result()
        threads.submit(locked_in_a_thread).result()


def test_a_start_that_fails_takes_its_folder_with_it(tmp_path):
    run = Run(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), run.locked(new=True):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_new_run_makes_its_folder_and_those_above(tmp_path):
    run = Run(tmp_path / "a" / "b")
    with run.locked(new=True):
        assert names(run.path) == {STARTING}
        run.write_settings(CONTENT)
        assert names(run.path) == {SETTINGS}


def test_a_run_in_no_folder_is_refused(tmp_path):
    with pytest.raises(RunError) as raised, Run(tmp_path / "none").locked():
        pytest.fail("there is no folder")
    assert_explains(raised, "run must be a writable folder", f"run={tmp_path / 'none'}", "No such file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["file", "file/run"])
def test_a_new_run_in_a_files_place_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("notes")
    with (
        pytest.raises(RunError, match="out must be a writable folder"),
        Run(tmp_path / below).locked(new=True),
    ):
        pytest.fail("a file is no folder")
    assert contents(tmp_path) == {"file": b"notes"}


def test_an_old_run_in_a_files_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("notes")
    with pytest.raises(RunError, match="run must be a writable folder"), Run(tmp_path / "file").locked():
        pytest.fail("a file is no folder")


LEFT_OVER = [
    *(
        f".step-00000010.{kind}"
        for kind in ("tmp-abc", "tmp-0123456789abcdef", "old-0123456789abcdef", "old")
    ),
    *(f".{file}.tmp" for file in (SETTINGS, METRICS, SAMPLES, "tokenizer.json", "tokenizer.model")),
]
USERS = [
    *(".git", ".notes", ".step-00000010", ".step-00000010.tmp-abc.txt", ".step-x.tmp-abc", ".run.json.bak"),
    *("notes.tmp", "step-00000010.tmp-abc", ".loss.png.tmp", ".metrics.jsonl", "x.step-00000010.old", ".tmp"),
]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_cleared_away_and_nothing_else(run, kind):
    checkpoint(run, 10)
    for name in [*LEFT_OVER, *USERS]:
        if kind == "folder":
            (run.path / name).mkdir()
            (run.path / name / "inside").write_text("x")
        else:
            (run.path / name).write_text("x")
    kept = {SETTINGS, "step-00000010", *USERS}
    with run.locked():
        assert names(run.path) == kept
    assert names(run.path) == kept
    assert run.settings() == WRITTEN


REWRITES = {
    "settings": lambda run: run.write_settings({"other": 1}),
    "log": lambda run: run.cut(0),
    "tokenizer": lambda run: run.keep_tokenizer(FileTokenizer("t.json", b"one")),
    "prune": lambda run: run.prune(1),
    "record": lambda run: run.log({"step": 2, "loss": 1}),
}


@pytest.mark.parametrize("rewrite", REWRITES)
def test_a_rewrite_that_is_killed_at_any_change_is_done_or_not_and_the_next_start_clears_up(run, rewrite):
    run.log({"step": 1, "loss": 1})
    for step in (10, 20):
        checkpoint(run, step)
    shutil.copytree(run.path, run.path.with_name("before"))
    before = contents(run.path)
    REWRITES[rewrite](run)
    after, found, at = contents(run.path), [], 1
    while True:
        shutil.rmtree(run.path)
        shutil.copytree(run.path.with_name("before"), run.path)
        if not killed(lambda: REWRITES[rewrite](run), at):
            break
        if rewrite == "record":  # half a line
            assert run.entries()[:1] == [{"step": 1, "loss": 1}]
        with run.locked():
            pass
        found.append(contents(run.path))
        at += 1
    torn = [] if rewrite != "record" else [{**before, METRICS: b'{"step": 1, "loss": 1}\n{"step": 2,'}]
    assert all(content in (before, after, *torn) for content in found)
    assert before in found


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("rewrite", REWRITES)
def test_a_rewrite_on_a_failing_disk_is_one_error_and_leaves_all_as_it_was(run, rewrite, error):
    run.log({"step": 1, "loss": 1})
    for step in (10, 20):
        checkpoint(run, step)
    before = contents(run.path)
    for at in range(1, 30):
        raised = fails(lambda: REWRITES[rewrite](run), at, error)
        if raised is None:
            break
        assert isinstance(raised, RunError)
        words = f"run={run.path}", os.strerror(error), remedy(OSError(error, "")), "--resume"
        assert all(word in str(raised) for word in words)
        left = contents(run.path)
        if left != before:  # only the folder could not be waited for, after the rename
            break
    assert at > (1 if rewrite == "prune" else 2)


def test_an_old_checkpoint_that_is_a_link_loses_its_link_alone(run, tmp_path):
    """It was moved to another disk, say, and linked back."""
    for step in (10, 20):
        checkpoint(run, step)
    run.path_of(10).rename(tmp_path / "moved")
    run.path_of(10).symlink_to(tmp_path / "moved")
    run.prune(1)
    assert list(run.checkpoints()) == [20]
    assert {entry.name for entry in (tmp_path / "moved").iterdir()} == {TRAINING, "weights"}
    (run.path / ".step-00000010.old").symlink_to(tmp_path / "moved")  # as version 0.1.0 left it
    with run.locked():
        assert names(run.path) == {SETTINGS, "step-00000020"}
    assert (tmp_path / "moved" / "weights").exists()


@pytest.mark.parametrize("given", ["link", ".", "empty", "a/b"])
def test_a_start_that_fails_leaves_the_users_folder_and_takes_its_own(tmp_path, monkeypatch, given):
    for name in ("empty", "target"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("target")
    monkeypatch.chdir(tmp_path / "empty" if given == "." else tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ZeroDivisionError), Run(Path(given)).locked(new=True):
        raise ZeroDivisionError
    assert contents(tmp_path) == before
    assert not list(tmp_path.rglob(LOCK))


WRITES = {**REWRITES, "sync": lambda run: run.sync(), "delete": lambda run: run.delete(10)}
del WRITES["prune"], WRITES["log"]  # which here find nothing to write


@pytest.mark.parametrize("happens", ["moved", "replaced", "deleted"])
@pytest.mark.parametrize("write", WRITES)
def test_a_folder_that_is_not_where_it_was_is_noticed_at_every_write(run, tmp_path, write, happens):
    checkpoint(run, 10)
    with run.locked():
        path = run.path
        path.rename(tmp_path / "moved")
        if happens == "replaced":
            path.mkdir()
        elif happens == "deleted":
            shutil.rmtree(tmp_path / "moved")
        with pytest.raises(RunError) as raised:
            WRITES[write](run)
        fix = "Put that one back" if happens == "deleted" else f"It is {tmp_path / 'moved'} now"
        assert_explains(raised, "run must stay where it is", f"run={path}", fix, "--resume")
        assert not path.exists() or not list(path.iterdir())
        assert run.follow() == (happens != "deleted")
        if happens != "deleted":
            WRITES[write](run)


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", SETTINGS, METRICS, "step-00000001"])
def test_a_folder_with_anything_in_it_is_refused_for_a_new_run_and_untouched(tmp_path, name):
    (tmp_path / name).write_text("x")
    (tmp_path / "sub").mkdir()
    before = contents(tmp_path)
    with pytest.raises(RunError) as raised, Run(tmp_path).locked(new=True):
        pytest.fail("the folder is not empty")
    assert_explains(
        raised, "out must be a new or empty folder", f"out={tmp_path}", "--resume", "choose another"
    )
    assert contents(tmp_path) == before
    assert not (tmp_path / LOCK).exists()


def test_a_run_with_settings_is_refused_for_a_new_run_with_its_first_checkpoint_untouched(run):
    checkpoint(run, 0)
    before = contents(run.path)
    with pytest.raises(RunError, match="out must be a new or empty folder"), run.locked(new=True):
        pytest.fail("the folder is a run")
    assert contents(run.path) == before


def test_a_refused_folder_keeps_its_first_checkpoint_though_its_settings_are_lost(tmp_path):
    """Here is a run whose run.json was deleted by mistake: nothing else may go."""
    run = Run(tmp_path)
    for step in (0, 100):
        checkpoint(run, step)
    run.log({"step": 1, "loss": 1})
    before = contents(tmp_path)
    with pytest.raises(RunError, match="out must be a new or empty folder"), run.locked(new=True):
        pytest.fail("the folder is not empty")
    assert contents(tmp_path) == before


def test_a_first_checkpoint_of_a_start_that_was_killed_is_a_run_that_never_began(tmp_path):
    run = Run(tmp_path)
    with run.locked(new=True):
        checkpoint(run, 0)  # and now the process is killed
    (tmp_path / ".step-00000000.tmp-00ff").mkdir()
    with run.locked(new=True):
        assert names(tmp_path) == {STARTING}


def test_such_a_start_is_known_for_what_it_is_until_all_of_it_is_cleared_away(tmp_path, monkeypatch):
    run = Run(tmp_path)
    with run.locked(new=True):
        checkpoint(run, 0)  # and now the process is killed
    remove = shutil.rmtree

    def interrupted(path, **options):
        remove(path)
        raise KeyboardInterrupt

    monkeypatch.setattr("palm.files.hidden.shutil.rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), run.locked(new=True):
        pytest.fail("it is killed before")
    assert names(tmp_path) == {STARTING}


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def fail(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", fail)
    with pytest.raises(RunError, match="run must be a writable folder"), Run(tmp_path).locked(new=True):
        pytest.fail("it cannot be written")


def test_a_first_checkpoint_that_somebody_put_there_is_no_litter(tmp_path):
    run = Run(tmp_path)
    checkpoint(run, 0)
    before = contents(tmp_path)
    with pytest.raises(RunError, match="out must be a new or empty folder"), run.locked(new=True):
        pytest.fail("the folder is not empty")
    assert contents(tmp_path) == before


def test_pruning_keeps_what_a_rewind_may_need(run):
    for step in range(0, 60, 10):
        checkpoint(run, step)
    run.prune(1, since=30)
    assert list(run.checkpoints()) == [30, 40, 50]


def test_settings_come_back(run):
    assert run.is_run
    assert run.settings() == WRITTEN
    assert Recipe.from_dict(run.settings()["recipe"]) == Recipe(seed=3)


def test_a_flipped_bit_of_the_settings_is_found_wherever_it_is(run):
    file = run.path / SETTINGS
    good = file.read_bytes()
    for position in range(len(good)):
        for bit in {position % 8, 7 - position % 2}:
            file.write_bytes(good[:position] + bytes([good[position] ^ 1 << bit]) + good[position + 1 :])
            with pytest.raises(RunError) as raised:
                run.settings()
            words = f"{file} must be as it was written", "its checksum differs", "Restore another copy"
            assert_explains(raised, *words)
    file.write_bytes(good)
    assert run.settings() == WRITTEN


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"3", b"{}"])
def test_settings_that_are_no_sealed_object_are_damaged(run, content):
    (run.path / SETTINGS).write_bytes(content)
    with pytest.raises(RunError, match="must be as it was written"):
        run.settings()


def test_settings_cut_short_or_longer_are_damaged(run):
    file = run.path / SETTINGS
    good = file.read_bytes()
    for content in (*(good[:length] for length in range(0, len(good), 7)), good[:-1], good + b"\n", good * 2):
        file.write_bytes(content)
        with pytest.raises(RunError, match="must be as it was written"):
            run.settings()


def test_a_line_end_that_became_another_byte_is_found(run):
    file = run.path / SETTINGS
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r", 1))
    with pytest.raises(RunError, match="must be as it was written"):
        run.settings()


@pytest.mark.parametrize(
    ("below", "what"),
    [("none", ": No such file"), ("empty", ", a folder without run.json."), ("file", ", a file.")],
)
def test_a_folder_that_is_no_run_has_no_settings(tmp_path, below, what):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    run = Run(tmp_path / below)
    assert not run.is_run
    with pytest.raises(RunError) as raised:
        run.settings()
    assert_explains(raised, "run must be a folder that palm train wrote", f"run={run.path}{what}")


def test_settings_that_cannot_be_written_leave_the_older_ones(run, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for where in ("palm.files.write.fsync", "pathlib.Path.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(where, full)
            with pytest.raises(RunError, match="No space left"):
                run.write_settings({"other": 1})
        assert run.settings() == WRITTEN


@pytest.mark.parametrize("write", ["log", "cut", "write_settings", "sync"])
def test_a_full_disk_is_a_run_error(run, monkeypatch, write):
    run.log({"step": 1, "loss": 1})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    for where in ("palm.training.run_folder.fsync", "palm.files.write.fsync", "palm.files.write._write_all"):
        monkeypatch.setattr(where, full)
    arguments = {
        "log": [{"step": 2, "loss": 1}],
        "cut": [0],
        "write_settings": [{"step": 2, "loss": 1}],
        "sync": [],
    }[write]
    with pytest.raises(RunError) as raised:
        getattr(run, write)(*arguments)
    words = "run must be a writable folder", f"run={run.path}", "No space left", "Make room", "--resume"
    assert_explains(raised, *words)
    monkeypatch.undo()
    assert run.settings() == WRITTEN
    assert run.entries() == [{"step": 1, "loss": 1}]


@pytest.mark.parametrize("other", [{"format": "palm-checkpoint"}, {"version": 2}, {"version": None}])
def test_settings_of_another_version_are_refused(run, other):
    run.write_settings({**CONTENT, **other})
    with pytest.raises(RunError) as raised:
        run.settings()
    (value,) = other.values()
    assert_explains(raised, "must be of format palm-run version 1", f"={value!r}", "Read it with the palm")


@pytest.fixture
def with_tokenizer(tmp_path):
    """A run whose tokenizer is a file, and that file; it is kept and compared, and not parsed, here."""
    source = tmp_path / "words.json"
    source.write_bytes(b"one")
    run = Run(tmp_path / "run")
    run.path.mkdir()
    digest = hashlib.sha256(b"one").hexdigest()
    own = {"tokenizer": str(source), "tokenizer_digest": digest}
    run.write_settings({**CONTENT, "data": {**CONTENT["data"], **own}})
    return run, source


def test_a_run_keeps_a_copy_of_its_tokenizer(with_tokenizer):
    run, source = with_tokenizer
    found = run.tokenizer()
    assert (found.name, found.content) == ("words.json", b"one")
    run.keep_tokenizer(found)
    assert {entry.name for entry in run.path.iterdir()} == {SETTINGS, "tokenizer.json"}
    source.write_bytes(b"two")
    run.keep_tokenizer(read_tokenizer_file(source))  # what is there stays
    source.unlink()
    assert (run.tokenizer().name, run.tokenizer().content) == ("tokenizer.json", b"one")


def test_a_tokenizer_that_is_not_the_runs_is_refused(with_tokenizer):
    run, source = with_tokenizer
    source.write_bytes(b"two")
    with pytest.raises(RunError) as raised:
        run.tokenizer()
    assert_explains(raised, "tokenizer must be the run's own", "got words.json", "Restore it")


def test_a_copy_of_a_tokenizer_is_whole_or_absent(with_tokenizer):
    run, source = with_tokenizer

    raised = fails(lambda: run.keep_tokenizer(read_tokenizer_file(source)), 2, errno.ENOSPC)
    assert "No space left" in str(raised)
    assert {entry.name for entry in run.path.iterdir()} == {SETTINGS}
    assert killed(lambda: run.keep_tokenizer(read_tokenizer_file(source)), 4)
    assert len(list(run.path.glob(".tokenizer.json.tmp-*"))) == 1
    with run.locked():
        assert names(run.path) == {SETTINGS}


def test_a_start_that_was_killed_after_its_tokenizer_was_kept_never_began(tmp_path):
    run = Run(tmp_path)
    with run.locked(new=True):
        checkpoint(run, 0)
        run.keep_tokenizer(FileTokenizer("t.json", b"one"))  # and now the process is killed
    with run.locked(new=True):
        assert names(tmp_path) == {STARTING}


def test_a_run_on_bytes_has_no_copy_of_a_tokenizer(run):
    run.write_settings(CONTENT)
    run.keep_tokenizer(kept_file(run.tokenizer()))
    assert run.tokenizer().name == "bytes"
    assert {entry.name for entry in run.path.iterdir()} == {SETTINGS}


@pytest.mark.parametrize(
    "data",
    [
        {"tokenizer": None, "tokenizer_digest": None, "path": None},
        {"tokenizer": None, "tokenizer_digest": "bytes", "path": "ids.npy"},  # as version 0.1.0 wrote it
    ],
)
def test_a_run_on_ids_without_a_tokenizer_has_none_not_even_bytes(run, data):
    run.write_settings({**CONTENT, "data": {**CONTENT["data"], **data}})
    assert run.tokenizer() is None
    assert kept_file(None) is None


def test_the_log_comes_back_line_by_line(run):
    entries = [{"step": step, "loss": 1 / step, "a\nb\u2028 é": step} for step in (1, 2, 3)]
    assert run.entries() == []
    for entry in entries:
        run.log(entry)
    assert run.entries() == entries
    run.sync()


def test_cut_takes_out_what_comes_after_a_step_in_both_logs(run):
    for step in range(1, 7):
        run.log({"step": step, "loss": 0.1 * step})
        run.log({"step": step, "text": "x"}, SAMPLES)
    kept = (run.path / METRICS).read_bytes().splitlines(keepends=True)[:4]
    run.cut(4)
    assert [entry["step"] for entry in run.entries()] == [1, 2, 3, 4]
    assert [entry["step"] for entry in run.entries(SAMPLES)] == [1, 2, 3, 4]
    assert (run.path / METRICS).read_bytes() == b"".join(kept)
    run.cut(0)
    assert run.entries() == []


@pytest.mark.parametrize(
    "torn", ['{"step": 3, "lo', "{", '{"step": 3, "loss": 0.3}', "\udc80\udcff", "\0\0\0\0"]
)
def test_a_last_line_without_its_end_is_no_line(run, torn):
    for step in (1, 2):
        run.log({"step": step, "loss": 1})
    with (run.path / METRICS).open("ab") as stream:
        stream.write(torn.encode(errors="surrogateescape"))
    assert [entry["step"] for entry in run.entries()] == [1, 2]
    run.cut(100)
    run.log({"step": 3, "loss": 1})
    assert [entry["step"] for entry in run.entries()] == [1, 2, 3]


@pytest.mark.parametrize(
    "torn",
    [
        b'{"step": 2, "lo',
        b"",
        b"\0\0\0",
        b'ss": 3}',
        b'{"step": 2, "loss": 1}{"step": 3, "loss": 1}',
        b"\xff",
    ],
)
def test_a_damaged_line_costs_no_other_one(run, torn):
    (run.path / METRICS).write_bytes(
        b'{"step": 1, "loss": 1}\n' + torn + b'\n{"step": 3, "loss": 1}\n{"step": 4, "loss": 1}\n'
    )
    assert run.entries() == [{"step": 1, "loss": 1}, {"step": 3, "loss": 1}, {"step": 4, "loss": 1}]
    run.cut(3)
    assert (run.path / METRICS).read_bytes() == b'{"step": 1, "loss": 1}\n{"step": 3, "loss": 1}\n'


@pytest.mark.parametrize("torn", [b"12", b"{}", b"[]", b'{"stap": 2}', b'{"step": "2"}'])
def test_a_line_that_is_json_but_no_entry_is_damaged(run, torn):
    (run.path / METRICS).write_bytes(b'{"step": 1, "loss": 1}\n' + torn + b'\n{"step": 3, "loss": 1}\n')
    run.cut(100)
    assert (run.path / METRICS).read_bytes() == b'{"step": 1, "loss": 1}\n{"step": 3, "loss": 1}\n'


def test_a_log_that_cannot_be_rewritten_stays(run, monkeypatch):
    run.log({"step": 1, "loss": 1})

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("palm.files.write.fsync", fail)
    with pytest.raises(RunError, match="Input/output"):
        run.cut(0)
    assert run.entries() == [{"step": 1, "loss": 1}]


def test_checkpoints_are_found_by_their_step_in_order(run):
    for step in (300, 7, 100, 123_456_789):
        checkpoint(run, step)
    for other in ("step-12", ".step-00000005.old", "step-00000008.tmp", "xstep-00000009", "step-0000001a"):
        (run.path / other).mkdir()
    assert list(run.checkpoints()) == [7, 100, 300, 123_456_789]
    assert all(path == run.path_of(step) for step, path in run.checkpoints().items())


def test_a_checkpoint_is_chosen_by_last_best_or_step(run):
    for step, loss in ((0, None), (10, 2.5), (20, 1.5), (30, 1.5), (40, 9.0)):
        checkpoint(run, step, loss)
    assert run.checkpoint() == run.checkpoint("last") == run.path_of(40)
    assert run.checkpoint("best") == run.path_of(20)  # of equal ones the earlier
    for step in (0, 10, 40):
        assert run.checkpoint(step) == run.checkpoint(str(step)) == run.path_of(step)


@pytest.mark.parametrize("which", ["11", 11, "newest", "", "-10", -10, "1e1", "²", None])
def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(run, which):
    for step in (0, 10):
        checkpoint(run, step)
    with pytest.raises(RunError) as raised:
        run.checkpoint(which)
    assert_explains(raised, "checkpoint must be last, best, or one of 0, 10", f"checkpoint={which}")


@pytest.mark.parametrize("which", ["last", "best", 0])
def test_a_run_without_checkpoints_has_none_to_choose(run, which):
    with pytest.raises(RunError) as raised:
        run.checkpoint(which)
    assert_explains(raised, f"{run.path} must have a checkpoint", "it has none", "Train first")


def test_without_a_validation_loss_no_checkpoint_is_the_best(run):
    checkpoint(run, 0)
    (checkpoint(run, 1, 1.0) / TRAINING).unlink()
    (checkpoint(run, 2, 1.0) / TRAINING).write_text("{")
    with pytest.raises(RunError) as raised:
        run.checkpoint("best")
    assert_explains(raised, f"{run.path} has no validation loss", "Use last")


def test_a_validation_loss_that_is_no_number_is_not_the_best(run):
    for step, loss in ((10, float("nan")), (20, 1.5), (30, 2.5)):
        checkpoint(run, step, loss)
    assert run.checkpoint("best") == run.path_of(20)


def test_a_damaged_checkpoint_is_not_the_best(run):
    (checkpoint(run, 10) / TRAINING).write_text("[]")
    checkpoint(run, 20, 1.5)
    assert run.checkpoint("best") == run.path_of(20)


@pytest.mark.parametrize(
    ("keep", "best", "kept"),
    [
        (1, 50, [50]),
        (1, 10, [10, 50]),
        (2, 20, [20, 40, 50]),
        (3, 40, [30, 40, 50]),
        (9, 10, [10, 20, 30, 40, 50]),
    ],
)
def test_prune_keeps_the_newest_and_the_best(run, keep, best, kept):
    for step in (10, 20, 30, 40, 50):
        checkpoint(run, step, 1.0 if step == best else 2.0)
    whole = contents(run.path_of(50))
    run.prune(keep)
    assert list(run.checkpoints()) == kept
    assert contents(run.path_of(50)) == whole
    assert {entry.name for entry in run.path.iterdir()} == {SETTINGS, *(run.path_of(s).name for s in kept)}


def test_prune_without_a_best_keeps_the_newest(run):
    for step in (1, 2, 3):
        checkpoint(run, step)
    run.prune(2)
    assert list(run.checkpoints()) == [2, 3]


@pytest.mark.parametrize("deleted", [0, 1])
def test_a_checkpoint_half_deleted_looks_like_none_and_goes_at_the_next_start(run, monkeypatch, deleted):
    checkpoint(run, 10, 1.0)
    checkpoint(run, 20, 2.0)

    def half(path, **options):
        for file in sorted(path.iterdir())[:deleted]:
            file.unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", half)
    with pytest.raises(KeyboardInterrupt):
        run.delete(10)
    monkeypatch.undo()
    assert list(run.checkpoints()) == [20]
    assert run.checkpoint("best") == run.path_of(20)
    [left] = [entry.name for entry in run.path.iterdir() if entry.name.startswith(".")]
    assert left.startswith(".step-00000010.tmp-")
    with run.locked():
        assert names(run.path) == {SETTINGS, "step-00000020"}
