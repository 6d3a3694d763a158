"""A run whose disk fails, or that dies, at every single change of a file ends as if nothing had happened."""

from __future__ import annotations

import errno

import pytest
from runs import REWINDING, WINGS, Trial, third_batch

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("wing", WINGS)
def test_a_disk_that_fails_at_any_moment(tmp_path, wing, error):
    trial = Trial(tmp_path, wing)
    ended = [trial.fails(call, error) for call in range(1, len(trial.calls) + 1)]
    print(f"\n{wing}, {errno.errorcode[error]}: {sum(ended)} of {len(ended)} failures ended the run")
    assert len(trial.calls) / 2 < sum(ended) < len(trial.calls)


@pytest.mark.parametrize("behind", [False, True], ids=["at once", "behind the steps"])
@pytest.mark.parametrize("wing", WINGS)
def test_a_run_that_dies_at_any_moment(tmp_path, wing, behind):
    trial = Trial(tmp_path, wing, behind=behind)
    assert all(trial.dies(call) for call in range(1, len(trial.calls) + 1))
    print(f"\n{wing}: {len(trial.calls)} deaths")


@pytest.mark.parametrize("wing", WINGS)
def test_a_disk_that_fails_at_any_moment_behind_the_steps(tmp_path, wing):
    trial = Trial(tmp_path, wing, behind=True)
    ended = [trial.fails(call, errno.ENOSPC) for call in range(1, len(trial.calls) + 1)]
    print(f"\n{wing}: {sum(ended)} of {len(ended)} failures ended the run")
    assert len(trial.calls) / 2 < sum(ended) < len(trial.calls)


@pytest.mark.parametrize("wing", WINGS)
def test_a_run_that_rewinds_and_dies_at_any_moment(tmp_path, wing):
    trial = Trial(tmp_path, wing, REWINDING, third_batch(wing, tmp_path))
    assert all(trial.dies(call) for call in range(1, len(trial.calls) + 1))
    print(f"\n{wing}: {len(trial.calls)} deaths")
