"""Several processes save one checkpoint: whichever dies or fails, the old or the new is there as a whole."""

import errno
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from cases import assert_explains, assert_same_bits
from damage import CONFIG, FIELDS, NEW, OLD, assert_is_state
from teams import BROKEN, DIED, cut, dealt, ended, save, together

from palm import CheckpointError, ConfigError, WeightsError
from palm.checkpoint import parts
from palm.checkpoint.checkpoint import load_arrays, save_arrays
from palm.checkpoint.progress import load_progress
from palm.checkpoint.team import Saving, alone, save_pieces

OWNERS = 2


def is_old(path: Path) -> bool:
    """Whether the checkpoint is the old one; if not it must be the new one, bit for bit."""
    old = load_progress(path)[2].fields == OLD[1].fields
    assert_is_state(path, OLD if old else NEW)
    return old


@pytest.mark.parametrize("owners", [1, 2, 5])
def test_what_several_save_is_what_one_would_have(tmp_path, owners):
    for state in (OLD, NEW):
        assert together(owners, lambda team: save(team, tmp_path, state)) == [tmp_path / "model"] * owners  # noqa: B023
        assert_is_state(tmp_path / "model", state)
        assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_process_need_not_own_anything(tmp_path):
    def act(team):
        return save_pieces(
            CONFIG, dealt(OLD)[0] + dealt(OLD)[1] if team.process == 1 else [], path, team, fields=FIELDS
        )

    path = tmp_path / "model"
    assert together(3, act) == [path] * 3
    assert_same_bits(load_arrays(path)[1], OLD[0])
    assert [file.name for file in path.glob("pieces*")] == ["pieces-00002-of-00003.safetensors"]


def test_one_process_can_do_it_alone(tmp_path):
    pieces = [piece for owned in dealt(OLD) for piece in owned]
    path = save_pieces(CONFIG, pieces, tmp_path / "model", alone(), fields=OLD[1].fields)
    assert_is_state(path, OLD)


@pytest.mark.parametrize("stride", [10, pytest.param(1, marks=pytest.mark.whole)])
@pytest.mark.parametrize("dies", range(OWNERS))
def test_whichever_process_is_killed_at_whatever_change_the_old_or_the_new_is_there(tmp_path, dies, stride):
    """Processes of the system; the others go on until they wait for the one that is gone."""
    together(OWNERS, lambda team: save(team, tmp_path, OLD))
    codes, count = ended(save, tmp_path, OWNERS, dies=dies)
    assert codes == [0] * OWNERS
    assert not is_old(tmp_path / "model")
    found = []
    for at in range(count, 0, -stride)[::-1]:  # with the last one
        together(OWNERS, lambda team: save(team, tmp_path, OLD))
        assert [entry.name for entry in tmp_path.iterdir()] == ["model"], at
        codes, _ = ended(save, tmp_path, OWNERS, dies=dies, at=at)
        assert codes[dies] == DIED
        found.append(is_old(tmp_path / "model"))
        assert {*codes} <= ({DIED, BROKEN} if found[-1] else {DIED, BROKEN, 0})
    assert found == sorted(found, reverse=True)  # first always the old, then always the new
    assert {*found} == ({True, False} if dies == 0 else {True})
    assert count > (40 if dies == 0 else 8)


@pytest.mark.parametrize("fails", range(OWNERS))
def test_where_a_disk_fails_one_process_all_raise_and_nothing_is_left(tmp_path, monkeypatch, fails):
    together(OWNERS, lambda team: save(team, tmp_path, OLD))
    original = parts.write_streamed

    def full(file, *given):
        if file.name.startswith(f"pieces-{fails + 1:05d}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(file, *given)

    monkeypatch.setattr(parts, "write_streamed", full)
    raised = together(OWNERS, lambda team: save(team, tmp_path, NEW))
    assert {type(error) for error in raised} == {CheckpointError}
    assert "No space left on device" in str(raised[fails])
    assert "Make room" in str(raised[fails])
    if fails:
        assert f"of which number {fails} failed" in str(raised[0])
    assert is_old(tmp_path / "model")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def spoiled(name: str, change):
    arrays = {**NEW[0], **NEW[1].moments}
    return cut({**arrays, name: change(arrays[name].copy())}, OWNERS)


def nan(array: np.ndarray) -> np.ndarray:
    array[-1] = np.nan
    return array


@pytest.mark.parametrize(
    ("pieces", "error", "words"),
    [
        (spoiled("norm", nan), WeightsError, "norm@.* must be finite"),
        (spoiled("second.embedding", nan), WeightsError, "second.embedding@.* must be finite"),
        (spoiled("norm", lambda a: a.astype(np.float32)), ConfigError, "must be of one dtype|one of"),
        (spoiled("norm", lambda a: a[:-1]), CheckpointError, r"each element of norm .* got \(5,\) in 0"),
        (spoiled("norm", lambda a: np.append(a, 1)), CheckpointError, "a piece of norm must be"),
        ([one * 2 for one in dealt(NEW)], WeightsError, "must each be given once"),
        ([dealt(NEW)[0], dealt(NEW)[0]], CheckpointError, "must lie in one piece; got .* in [02]"),
        ([dealt(NEW)[0], []], CheckpointError, "must lie in one piece; got .* in 0"),
        ([[], []], CheckpointError, "must be of one dtype; got none"),
    ],
    ids=["nan", "nan moment", "dtype", "short", "long", "twice", "both", "half", "none"],
)
def test_pieces_that_could_not_be_loaded_are_not_saved(tmp_path, pieces, error, words):
    path = tmp_path / "model"
    raised = together(
        OWNERS, lambda team: save_pieces(CONFIG, pieces[team.process], path, team, fields=FIELDS)
    )
    assert all(isinstance(found, (CheckpointError, WeightsError, ConfigError)) for found in raised)
    own = [found for found in raised if isinstance(found, error) and re.search(words, str(found))]
    assert own or ("dtype" in words and any("one dtype" in str(found) for found in raised))
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_replaced_unasked(tmp_path):
    path = save_arrays(CONFIG, OLD[0], tmp_path / "model")
    raised = together(
        2, lambda team: save_pieces(CONFIG, dealt(NEW)[team.process], path, team, fields=FIELDS)
    )
    for error in raised:
        assert_explains(type("Raised", (), {"value": error}), "path must not exist yet", "overwrite=True")
    assert_same_bits(load_arrays(path)[1], OLD[0])
    assert together(2, lambda team: save(team, tmp_path)) == [path] * 2
    assert_is_state(path, NEW)


def test_in_between_another_thread_may_write(tmp_path):
    """The steps of a saving: nothing has the name before the last one."""
    path, names = tmp_path / "model", []

    def act(team):
        with Saving(CONFIG, path, team, fields=NEW[1].fields) as saving:
            thread = threading.Thread(target=saving.write, args=(dealt(NEW)[team.process],))
            thread.start()
            thread.join()
            names.append(path.exists())
            team.wait()
            saving.finish()
        return path.exists()

    assert together(2, act) == [True, True]
    assert names == [False, False]
    assert_is_state(path, NEW)


def test_a_manifest_that_could_not_be_read_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "MOST_BYTES", 1000)
    raised = together(2, lambda team: save(team, tmp_path))
    assert all("manifest.json must have at most 1,000 bytes" in str(error) for error in raised)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_still_fills_is_not_taken_for_abandoned(tmp_path):
    pieces = dealt(NEW)[0] + dealt(NEW)[1]
    with Saving(CONFIG, tmp_path / "model", alone(), fields=NEW[1].fields) as saving:
        save_arrays(CONFIG, OLD[0], tmp_path / "model")
        saving.write(pieces)
        with pytest.raises(CheckpointError, match="must not exist yet"):
            saving.finish()
    assert_same_bits(load_arrays(tmp_path / "model")[1], OLD[0])
    assert os.listdir(tmp_path) == ["model"]
