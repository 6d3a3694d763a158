"""A checkpoint that is written behind the steps is that of the step it was begun at, or an error is told."""

import threading
import time

import numpy as np
import pytest
from cases import assert_same_bits, python
from damage import CONFIG, NEW, OLD, assert_is_state
from teams import dealt, together

from palm import CheckpointError
from palm.checkpoint.background import Background, snapshot
from palm.checkpoint.checkpoint import load_arrays, save_arrays
from palm.checkpoint.team import Saving
from palm.spec.boxes import Piece


def test_the_steps_go_on_while_it_is_written_and_do_not_change_it(tmp_path):
    weights = {name: array.copy() for name, array in OLD[0].items()}
    kept = {piece.name: piece.array for piece in snapshot(Piece(n, (), a) for n, a in weights.items())}
    begun, go_on, background = threading.Event(), threading.Event(), Background()

    def write():
        begun.set()
        assert go_on.wait(60)
        save_arrays(CONFIG, kept, tmp_path / "model")

    background.start(write)
    assert begun.wait(60)
    for array in weights.values():  # the next step
        np.add(array, 1, out=array)
    assert not (tmp_path / "model").exists()
    go_on.set()
    background.wait()
    assert_same_bits(load_arrays(tmp_path / "model")[1], OLD[0])
    background.wait()  # nothing is left to wait for


def test_a_snapshot_is_a_copy_of_the_same_layout():
    turned = np.arange(12.0).reshape(3, 4).T
    [found] = snapshot([Piece("x", (4, 0), turned)])
    assert (found.name, found.start) == ("x", (4, 0))
    assert np.array_equal(found.array, turned)
    assert found.array.strides == turned.strides
    assert not np.shares_memory(found.array, turned)


def test_what_goes_wrong_is_raised_once_by_the_next_that_waits(tmp_path):
    path = tmp_path / "file" / "model"
    path.parent.write_text("no folder")
    background = Background()
    background.start(lambda: save_arrays(CONFIG, OLD[0], path))
    deadline = time.monotonic() + 60
    while background.busy:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    done = []
    with pytest.raises(CheckpointError, match="must be writable"):
        background.start(lambda: done.append("too early"))
    assert done == []
    background.start(lambda: done.append("then"))
    background.wait()
    assert done == ["then"]


def test_one_is_written_after_the_other():
    order, background = [], Background()

    def work(number):
        time.sleep(0.02 / number)
        order.append(number)

    for number in (1, 2, 3):
        background.start(lambda number=number: work(number))
    background.wait()
    assert order == [1, 2, 3]


def test_it_is_written_to_its_end_though_the_process_ends(tmp_path):
    code = f"""
import time
from palm.checkpoint.background import Background
def work():
    time.sleep(0.3)
    open({str(tmp_path / "done")!r}, "w").close()
Background().start(work)
"""
    assert python(code).returncode == 0
    assert (tmp_path / "done").exists()


def test_each_process_of_a_team_writes_behind_its_steps_and_all_seal_together(tmp_path):
    path = tmp_path / "model"

    def act(team):
        background = Background()
        live = snapshot(dealt(NEW)[team.process])
        with Saving(CONFIG, path, team, fields=NEW[1].fields) as saving:
            kept = snapshot(live)
            background.start(lambda: saving.write(kept))
            for piece in live:  # the next step
                np.add(piece.array, 1, out=piece.array)
            background.wait()
            assert not path.exists()
            team.wait()
            saving.finish()
        return path

    assert together(2, act) == [path, path]
    assert_is_state(path, NEW)
