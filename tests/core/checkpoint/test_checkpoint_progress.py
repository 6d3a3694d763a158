"""The checkpoint of a run in progress: whole, exact, or an error that says what is wrong."""

import errno
import json
import random
from pathlib import Path

import numpy as np
import pytest
from cases import assert_explains, assert_same_bits
from damage import (
    CONFIG,
    FIELDS,
    NEW,
    OLD,
    assert_is_state,
    draw_state,
    save_state,
    undetected,
)

from palm import CheckpointError, WeightsError
from palm.checkpoint import about, checkpoint
from palm.checkpoint.checkpoint import load_arrays, save_arrays
from palm.checkpoint.manifest import MANIFEST, TRAINING
from palm.checkpoint.progress import Progress, load_progress
from palm.files import write
from palm.files.sealed import sealed
from palm.spec.parameters import numpy_dtype


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A good checkpoint in several files. Each test puts back what it breaks."""
    path = save_state(OLD, tmp_path_factory.mktemp("progress") / "checkpoint")
    kinds = {"config.json": 1, "manifest.json": 1, "optimizer": 4, "training.json": 1, "weights": 2}
    found = [file.name.partition("-0")[0] for file in path.iterdir()]
    assert {kind: found.count(kind) for kind in sorted(found)} == kinds
    return path


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("largest", [1, 5000, 2 << 30])
def test_everything_comes_back_bit_for_bit(tmp_path, monkeypatch, dtype, largest):
    monkeypatch.setattr(checkpoint, "MAX_FILE_BYTES", largest)
    state = draw_state(2, dtype)
    path = save_arrays(CONFIG, state[0], tmp_path / "checkpoint", progress=state[1])
    assert_is_state(path, state)
    assert {array.dtype for array in load_progress(path)[2].moments.values()} == {numpy_dtype(dtype)}


def test_the_weights_alone_are_those_of_a_checkpoint_without_progress(tmp_path):
    """The files of a model are the same bytes with and without a run beside them."""
    with_run = save_state(OLD, tmp_path / "run")
    plain = save_state((OLD[0], None), tmp_path / "plain")
    for file in plain.iterdir():
        if file.name != MANIFEST:
            assert file.read_bytes() == (with_run / file.name).read_bytes()
    assert_same_bits(load_arrays(with_run)[1], load_arrays(plain)[1])


def test_the_fields_are_json_that_a_person_can_read(whole):
    assert json.loads((whole / TRAINING).read_text(encoding="utf-8")) == OLD[1].fields


def test_a_model_without_a_run_has_no_progress(tmp_path):
    path = save_arrays(CONFIG, OLD[0], tmp_path / "model")
    with pytest.raises(CheckpointError) as raised:
        load_progress(path)
    words = (
        "path must be a checkpoint of a run",
        f"path={path}",
        f"a model without {TRAINING}",
        "Start a new run",
    )
    assert_explains(raised, *words)


def test_a_path_that_is_no_checkpoint_has_no_progress(tmp_path):
    with pytest.raises(CheckpointError) as raised:
        load_progress(tmp_path / "none")
    assert_explains(raised, "path must be a checkpoint directory", f"path={tmp_path / 'none'}", "Pass what")


def test_damage_of_any_kind_in_any_file_is_found_by_both_ways_of_loading(whole):
    rng = random.Random(0)
    assert [missed for _ in range(100) for missed in undetected(whole, rng)] == []
    assert_is_state(whole, OLD)


def test_damage_that_nobody_checks_would_be_noticed(whole, monkeypatch):
    """The twin of the test above: without its checks the same damage is missed."""
    monkeypatch.setattr("palm.checkpoint.manifest.check_size", lambda *_: None)
    monkeypatch.setattr("palm.checkpoint.manifest.check_digest", lambda *_: None)
    rng = random.Random(0)
    assert sum(bool(undetected(whole, rng)) for _ in range(30)) > 5


def test_every_file_deleted_is_named(whole):
    for file in sorted(whole.iterdir()):
        good = file.read_bytes()
        file.unlink()
        for load in (load_arrays, load_progress):
            with pytest.raises(CheckpointError, match=file.name):
                load(whole)
        file.write_bytes(good)


def test_a_damaged_moment_is_named(whole):
    file = whole / "optimizer-00003-of-00004.safetensors"
    good = file.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    for name, row in json.loads(good[8:start]).items():
        at = start + row["data_offsets"][0]
        file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        for load in (load_arrays, load_progress):
            with pytest.raises(CheckpointError) as raised:
                load(whole)
            assert_explains(raised, f"{file} must be as it was saved", f"damaged in {name}.", "Restore")
    file.write_bytes(good)


def test_an_offset_that_became_negative_is_found(tmp_path):
    """One byte replaced: in `[17136,` the 1 became a minus, and no file can be read before its start."""
    path = save_arrays(CONFIG, OLD[0], tmp_path / "checkpoint", progress=OLD[1])
    file = path / "optimizer-00001-of-00001.safetensors"
    good = file.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    firsts = [row["data_offsets"][0] for row in json.loads(good[8:start]).values()]
    first = next(number for number in firsts if number > 10_000 and number % 10_000 > start)
    file.write_bytes(good.replace(b"[%d," % first, b"[-%d," % (first % 10_000), 1))
    assert file.stat().st_size == len(good)
    for load in (load_arrays, load_progress):
        with pytest.raises(CheckpointError, match="damaged in"):
            load(path)


def test_a_header_nested_without_end_is_found(tmp_path):
    path = save_arrays(CONFIG, OLD[0], tmp_path / "checkpoint")
    file = path / "weights-00001-of-00001.safetensors"
    file.write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000)
    with pytest.raises(CheckpointError, match="damaged in its header"):
        load_arrays(path)


def forge(path: Path, edit) -> None:
    """Change a checkpoint's manifest and seal it anew."""
    manifest = json.loads((path / MANIFEST).read_text())
    manifest.pop("seal")
    edit(manifest)
    (path / MANIFEST).write_text(sealed(manifest))


def test_a_run_without_all_of_its_moments_is_refused(tmp_path):
    path = save_state(OLD, tmp_path / "checkpoint")
    gone = "optimizer-00004-of-00004.safetensors"
    forge(path, lambda manifest: manifest["files"].pop(gone))
    with pytest.raises(CheckpointError) as raised:
        load_progress(path)
    assert_explains(raised, f"{path} must hold two moments of each weight", "second.", "does not fit")
    assert_same_bits(load_arrays(path)[1], OLD[0])


def without(name: str) -> dict[str, np.ndarray]:
    return {key: array for key, array in OLD[1].moments.items() if key != name}


MISFITS = {
    "one is missing": without("second.norm"),
    "none is there": {},
    "one is unknown": {**OLD[1].moments, "third.norm": OLD[1].moments["first.norm"]},
    "one has another shape": {**OLD[1].moments, "first.norm": np.zeros(3)},
    "one has another dtype": {**OLD[1].moments, "first.norm": np.zeros(6, np.float32)},
    "one is not finite": {**OLD[1].moments, "second.norm": np.full(6, np.inf)},
}


@pytest.mark.parametrize("moments", MISFITS.values(), ids=MISFITS)
def test_moments_that_do_not_fit_are_never_loaded(tmp_path, moments):
    path = tmp_path / "checkpoint"
    try:
        save_arrays(CONFIG, OLD[0], path, progress=Progress(FIELDS, moments))
    except WeightsError:
        assert list(tmp_path.iterdir()) == []
    else:
        with pytest.raises(CheckpointError, match=r"moment|norm must have dtype"):
            load_progress(path)


@pytest.mark.parametrize("moments", MISFITS.values(), ids=MISFITS)
def test_moments_that_could_not_be_loaded_are_not_saved(tmp_path, moments):
    with pytest.raises(WeightsError):
        save_arrays(CONFIG, OLD[0], tmp_path / "checkpoint", progress=Progress(FIELDS, moments))
    assert list(tmp_path.iterdir()) == []


# Where writing goes through, and how often before the new checkpoint has its name.
STAGES = {
    "write_file": ((checkpoint, about), 3),
    "write_arrays": ((checkpoint,), 6),
    "fingerprint": ((about,), 2),
    "sealed": ((checkpoint,), 1),
    "fsync": ((write,), 10),
    "rename": ((Path,), 1),
}


def save_on_a_full_disk(stage: str, call: int, path: Path, *, overwrite: bool = False) -> str:
    """Save while that call of a stage finds the disk full; what is said of it, nothing if all went well."""
    owners = STAGES[stage][0]
    original, calls = getattr(owners[0], stage), 0

    def fail(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == call:
            if stage == "write_arrays":
                arguments[0].write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        for owner in owners:
            patch.setattr(owner, stage, fail)
        patch.setattr(write, "_exchange", lambda *_: False)
        try:
            save_state(NEW, path, overwrite=overwrite)
        except CheckpointError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_is_full_at_any_moment_leaves_nothing_and_keeps_the_older_checkpoint(tmp_path, stage):
    old = save_state(OLD, tmp_path / "old")
    for call in range(1, STAGES[stage][1] + 1):
        for path, overwrite in ((tmp_path / "new", False), (old, True)):
            said = save_on_a_full_disk(stage, call, path, overwrite=overwrite)
            assert said.startswith(f"path must be writable; got path={path}: [Errno 28] No space left"), call
            assert [entry.name for entry in tmp_path.iterdir()] == ["old"], (call, path)
    assert_is_state(old, OLD)
    assert not save_on_a_full_disk(stage, 100, old, overwrite=True)
    assert_is_state(old, NEW)


def test_an_older_checkpoint_that_stepped_aside_comes_back(tmp_path):
    """The second rename is the new one's, when the older one has none of its own."""
    old = save_state(OLD, tmp_path / "old")
    assert "No space left" in save_on_a_full_disk("rename", 2, old, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]
    assert_is_state(old, OLD)


@pytest.mark.parametrize("stage", ["write_file", "write_arrays", "fingerprint", "sealed", "fsync"])
def test_there_is_no_later_moment_than_those(tmp_path, stage):
    """The twin of the test above: one call later there is no error, or (fsync) a whole checkpoint already."""
    said = save_on_a_full_disk(stage, STAGES[stage][1] + 1, tmp_path / "new")
    assert bool(said) == (stage == "fsync")
    assert_is_state(tmp_path / "new", NEW)


def test_fields_that_are_no_json_leave_nothing(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_arrays(CONFIG, OLD[0], tmp_path / "new", progress=Progress({"x": {1}}, OLD[1].moments))
    assert list(tmp_path.iterdir()) == []
