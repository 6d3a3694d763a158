"""One of two processes is killed: the other one ends with a message, and the run goes on bit for bit.

tests/endurance/test_kill_processes.py does this fifty times.
"""

from __future__ import annotations

import pytest
from killed_processes import assert_same_end, finish, kill_often


@pytest.mark.whole
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_run_one_of_whose_processes_is_killed_goes_on_bit_for_bit(tmp_path, backend):
    data, out, whole = (tmp_path / name for name in ("text.txt", "killed", "whole"))
    print(f"\n{backend}: {kill_often(backend, data, out, 2, 60)}")
    finish(backend, data, whole, 60)
    assert_same_end(out, whole, 60)
