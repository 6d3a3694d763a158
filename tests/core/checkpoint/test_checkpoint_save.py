"""Saving completes or leaves everything as it was."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cases import assert_explains, assert_same_bits, draw_weights, python, small
from safetensors.numpy import save_file

from palm import CheckpointError, ConfigError, PaLMConfig, WeightsError
from palm.checkpoint import about, checkpoint
from palm.checkpoint.checkpoint import load_arrays, save_arrays
from palm.files import write

CONFIG = small()
OLD, NEW = (draw_weights(CONFIG, seed) for seed in (0, 1))


def without(name: str) -> dict[str, np.ndarray]:
    return {key: array for key, array in NEW.items() if key != name}


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        (without("blocks.1.attention.out"), ["miss blocks.1.attention.out."]),
        ({**NEW, "beta": NEW["norm"]}, ["have unknown beta."]),
        ({**NEW, "norm": NEW["norm"][:3]}, ["norm must have shape (6,)", "shape=(3,)"]),
        ({**NEW, "norm": NEW["norm"].astype(np.float16)}, ["norm must be one of float64", "float16"]),
        ({**NEW, "norm": NEW["norm"].astype(">f8")}, ["norm must be one of float64", ">f8"]),
        ({**NEW, "norm": NEW["norm"] * np.nan}, ["norm must be finite", "nan at (0,)"]),
        ({**NEW, "embedding": NEW["embedding"] * np.inf}, ["embedding must be finite", "inf"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_weights_that_could_not_be_loaded_are_not_saved(tmp_path, weights, parts):
    with pytest.raises(WeightsError) as raised:
        save_arrays(CONFIG, weights, tmp_path / "checkpoint")
    assert_explains(raised, *parts)
    assert not list(tmp_path.iterdir())


def test_weights_of_two_dtypes_are_not_saved(tmp_path):
    mixed = {**NEW, "norm": NEW["norm"].astype(np.float32)}
    with pytest.raises(ConfigError, match="float32, float64"):
        save_arrays(CONFIG, mixed, tmp_path / "checkpoint")
    assert not list(tmp_path.iterdir())


def test_an_open_config_is_not_saved(tmp_path):
    open_config = PaLMConfig(num_tokens=13, dim=6, depth=2)
    with pytest.raises(ConfigError, match="config must be resolved"):
        save_arrays(open_config, NEW, tmp_path / "checkpoint")
    assert not list(tmp_path.iterdir())


def test_a_path_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("notes")
    path = tmp_path / "file" / "checkpoint"
    with pytest.raises(CheckpointError) as raised:
        save_arrays(CONFIG, NEW, path)
    assert_explains(raised, "path must be writable", f"path={path}", "Choose another")
    assert (tmp_path / "file").read_text() == "notes"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


STEPS = [
    *((checkpoint, "write_arrays", call) for call in (1, 2)),
    (about, "fingerprint", 1),
    (checkpoint, "sealed", 1),
    *((write, "fsync", call) for call in (1, 5)),
    (checkpoint, "put_in_place", 1),
]
ERRORS = {
    "the disk is full": (OSError(errno.ENOSPC, "No space left on device"), CheckpointError),
    "the user interrupts": (KeyboardInterrupt(), KeyboardInterrupt),
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(("owner", "step", "call"), STEPS)
def test_a_failure_at_any_step_leaves_nothing_and_keeps_the_older_checkpoint(
    tmp_path, monkeypatch, owner, step, call, error
):
    monkeypatch.setattr(checkpoint, "MAX_FILE_BYTES", 5000)
    old = save_arrays(CONFIG, OLD, tmp_path / "old")
    raises, expected = ERRORS[error]
    original, calls = getattr(owner, step), []

    def fail(*arguments, **options):
        calls.append(arguments)
        if len(calls) == call:
            raise raises
        return original(*arguments, **options)

    monkeypatch.setattr(owner, step, fail)
    for path, overwrite in ((tmp_path / "new", False), (old, True)):
        calls.clear()
        with pytest.raises(expected) as raised:
            save_arrays(CONFIG, NEW, path, overwrite=overwrite)
        assert len(calls) == call
        if expected is CheckpointError:
            assert_explains(raised, "path must be writable", f"path={path}", "No space left", "Make room")
        assert [entry.name for entry in tmp_path.iterdir()] == ["old"]
    monkeypatch.undo()
    assert_same_bits(load_arrays(old)[1], OLD)


KILLED_WHILE_WRITING = """
import os, sys
from cases import draw_weights, small
from palm.checkpoint import checkpoint

def die(file, *_, **__):
    file.write_bytes(b"half a file")
    os._exit(9)

checkpoint.write_arrays = die
checkpoint.save_arrays(small(), draw_weights(small(), 1), sys.argv[1], overwrite=True)
"""


def test_a_process_killed_while_writing_leaves_the_older_checkpoint_whole(tmp_path, monkeypatch):
    old = save_arrays(CONFIG, OLD, tmp_path / "old")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(entry for entry in sys.path if entry))
    assert python(KILLED_WHILE_WRITING, str(old)).returncode == 9
    assert_same_bits(load_arrays(old)[1], OLD)
    save_arrays(CONFIG, NEW, old, overwrite=True)
    assert_same_bits(load_arrays(old)[1], NEW)


def test_the_files_of_weights_are_those_that_the_library_writes(tmp_path):
    """As versions of palm have them that wrote them by the library: to the last byte."""
    path = save_arrays(CONFIG, NEW, tmp_path / "checkpoint")
    save_file({name: np.ascontiguousarray(array) for name, array in NEW.items()}, tmp_path / "library")
    assert (path / "weights-00001-of-00001.safetensors").read_bytes() == (tmp_path / "library").read_bytes()


def test_every_file_is_synced_before_the_rename_and_the_parent_after_it(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint"
    synced: list[tuple[int, bool]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, path.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    save_arrays(CONFIG, NEW, path)
    of_files = [file.stat().st_ino for file in path.iterdir()]
    assert sorted(synced[:-2]) == sorted((inode, False) for inode in of_files)
    assert synced[-2:] == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


def test_a_disk_that_is_really_full_is_a_checkpoint_error(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(CheckpointError, match="path must be writable") as raised:
            save_arrays(CONFIG, NEW, tmp_path / "checkpoint")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in str(raised.value)
    assert not list(tmp_path.iterdir())


def while_saving(monkeypatch, happens: Callable[[], object]) -> None:
    """Let something happen in the middle of the next save, and only then."""
    original = checkpoint.write_arrays

    def write_arrays(*arguments, **options):
        monkeypatch.setattr(checkpoint, "write_arrays", original)
        happens()
        return original(*arguments, **options)

    monkeypatch.setattr(checkpoint, "write_arrays", write_arrays)


def test_of_two_saves_to_one_path_one_succeeds_and_is_whole(tmp_path, monkeypatch):
    path, failed = tmp_path / "checkpoint", []

    def try_to_save(weights: dict[str, np.ndarray]) -> None:
        try:
            save_arrays(CONFIG, weights, path)
        except CheckpointError:
            failed.append(weights)

    while_saving(monkeypatch, lambda: try_to_save(OLD))
    try_to_save(NEW)
    assert len(failed) == 1
    assert_same_bits(load_arrays(path)[1], OLD if failed[0] is NEW else NEW)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


def test_without_overwrite_what_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint"

    def someone_else_writes() -> None:
        path.mkdir()
        (path / "notes").write_text("notes")

    while_saving(monkeypatch, someone_else_writes)
    with pytest.raises(CheckpointError, match="path must not exist yet"):
        save_arrays(CONFIG, NEW, path)
    assert (path / "notes").read_text() == "notes"


def test_a_failed_rename_leaves_the_older_checkpoint_under_its_name(tmp_path, monkeypatch):
    old = save_arrays(CONFIG, OLD, tmp_path / "old")
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if target == old and ".tmp" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(write, "_exchange", lambda *_: False)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save_arrays(CONFIG, NEW, old, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]
    assert_same_bits(load_arrays(old)[1], OLD)


def test_a_link_to_a_checkpoint_is_overwritten_and_its_target_left_alone(tmp_path):
    old = save_arrays(CONFIG, OLD, tmp_path / "old")
    link = tmp_path / "latest"
    link.symlink_to(old)
    save_arrays(CONFIG, NEW, link, overwrite=True)
    assert_same_bits(load_arrays(link)[1], NEW)
    assert_same_bits(load_arrays(old)[1], OLD)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest", "old"]


@pytest.mark.parametrize("path", [".", "/", "a\0b"])
def test_a_path_that_cannot_be_a_folder_of_its_own_is_a_checkpoint_error(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="path must"):
        save_arrays(CONFIG, NEW, path, overwrite=True)
