"""A run of two processes, one of which is killed at random moments, ends as if nothing had happened."""

from __future__ import annotations

import os
import time

import pytest
from killed_processes import assert_same_end, finish, kill_often

from palm.training.lock import LOCK

KILLS = int(os.environ.get("PALM_KILLS_OF_PROCESSES", "50"))
# More than a fast machine makes between the kills.
STEPS = 16 * KILLS


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_processes_killed_at_random_moments_end_bit_for_bit_as_unbroken_ones(backend, tmp_path):
    data, out, whole = (tmp_path / name for name in ("text.txt", "killed", "whole"))
    started = time.monotonic()
    seen = kill_often(backend, data, out, KILLS, STEPS)
    print(f"\n{backend}: {seen}, in {time.monotonic() - started:.0f} s")
    finish(backend, data, whole, STEPS)
    assert [entry.name for entry in out.iterdir() if entry.name.startswith(".")] == [LOCK]
    assert_same_end(out, whole, STEPS)
    assert seen.first > KILLS / 5
    assert KILLS < 10 or seen.saving > KILLS / 10
