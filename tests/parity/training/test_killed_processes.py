"""One of two processes is killed or fails: the other one ends with a message, and the run can go on.

tests/endurance/test_kill_processes.py does this fifty times.
"""

from __future__ import annotations

import time

import pytest
from killed_processes import SOON, assert_same_end, finish, kill_often, start, until


@pytest.mark.whole
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_run_one_of_whose_processes_is_killed_goes_on_bit_for_bit(tmp_path, backend):
    data, out, whole = (tmp_path / name for name in ("text.txt", "killed", "whole"))
    print(f"\n{backend}: {kill_often(backend, data, out, 2, 60)}")
    finish(backend, data, whole, 60)
    assert_same_end(out, whole, 60)


@pytest.mark.whole
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_an_error_of_the_first_process_ends_both(tmp_path, backend):
    """It alone looks whether the folder is free. Neither waits for the other one at its end."""
    data, out = tmp_path / "text.txt", tmp_path / "taken"
    data.write_bytes(bytes(range(256)) * 100)
    out.mkdir()
    (out / "file").touch()
    run = start(backend, data, out, 5)
    assert until(lambda: "palm:" in run.told(0) or not run.running(), 120)
    failed = time.monotonic()
    try:
        assert until(lambda: all(process.poll() is not None for process in run.launched), SOON), "it hangs"
    finally:
        run.stop()
    assert time.monotonic() - failed < SOON / 3
    assert 0 not in [process.returncode for process in run.launched]
    assert "palm: out must be a new or empty folder" in run.told(0)
    assert "Traceback" not in run.told(0) + run.told(1)
    assert "palm: " in run.told(1)
