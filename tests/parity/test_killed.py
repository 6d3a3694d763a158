"""What the system kills while it changes files leaves the old or the new: a sample of the endurance tests."""

import pytest
from operations import survives_kills
from system_calls import STRACE

pytestmark = pytest.mark.skipif(STRACE is None, reason="there is no strace, which kills at a system call")


@pytest.mark.parametrize("name", ["save(overwrite)", "report"])
def test_what_the_system_kills_leaves_the_old_or_the_new(tmp_path, name):
    assert survives_kills(name, "torch", tmp_path, stride=5) > 2
