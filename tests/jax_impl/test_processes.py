"""What a process says once another one of its mesh is gone, before it ends."""

from __future__ import annotations

import pytest
from cases import python
from waiting import HEARD, UNHEARD, status

from palm import BackendError
from palm.jax_impl import processes

LOST = ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:7382\nand more")
OWN = ValueError("Incompatible shapes for broadcasting")
ABORTS = """
import ctypes, os, threading
from palm.jax_impl import processes
if {tells}:
    processes._tell_of_abort()
# As JAX does: in a thread that is not Python's, while the main thread is busy with something else.
threading.Timer(0, ctypes.CDLL(None).abort).start()
while True:
    pass
"""


def raised(error):
    try:
        with processes.together():
            raise error
    except ValueError as found:
        return found


def test_an_error_that_comes_of_another_process_says_so(monkeypatch):
    assert raised(LOST) is LOST  # alone there is no other
    monkeypatch.setattr(processes, "is_joined", lambda: True)
    assert raised(OWN) is OWN
    mine = BackendError("the barrier of a connection")
    assert raised(mine) is mine
    found = raised(LOST)
    assert isinstance(found, BackendError)
    assert "got no answer from another one: UNKNOWN: Gloo all-reduce failed" in str(found)
    assert "and more" not in str(found)


def test_where_jax_aborts_the_process_it_ends_with_a_message(monkeypatch):
    told, silent = (python(ABORTS.format(tells=tells)) for tells in (True, False))
    assert told.returncode == 2
    assert told.stderr.startswith("palm: the processes of a mesh must all go on; JAX ends this one")
    assert silent.returncode < 0
    assert "palm" not in silent.stderr


@pytest.mark.parametrize("interruptible", [True, False])
def test_a_signal_ends_a_process_that_waits_for_others(interruptible):
    assert status("jax_impl", interruptible=interruptible) == (HEARD if interruptible else UNHEARD)


def test_what_is_waited_for_is_given_or_raised():
    assert processes.interruptibly(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        processes.interruptibly(lambda: 1 / 0)
