"""Threads that read, and one that must be alone."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from palm.tracing.turns import alone, shared


def at_once(first, second) -> bool:
    """Whether another thread is inside `second` while this one is inside `first`."""
    inside = threading.Event()

    def enter() -> None:
        with second():
            inside.set()

    thread = threading.Thread(target=enter)
    with first():
        thread.start()
        found = inside.wait(0.1)
    thread.join(5)
    assert inside.is_set()
    return found


def test_readers_share_and_one_is_alone():
    assert at_once(shared, shared)
    assert not at_once(shared, alone)
    assert not at_once(alone, shared)
    assert not at_once(alone, alone)


def test_a_thread_does_not_wait_for_itself():
    with shared(), shared(), alone(), alone(), shared():
        pass
    assert at_once(shared, shared)


def test_what_fails_inside_ends_its_turn():
    with pytest.raises(KeyError), alone():
        raise KeyError
    assert at_once(shared, shared)


def test_no_two_are_alone_in_a_crowd():
    held, most = 0, 0

    @alone()
    def work(_: int) -> None:
        nonlocal held, most
        held += 1
        most = max(most, held)
        held -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(1000)))
    assert most == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning", "ignore:os.fork:RuntimeWarning")
def test_a_forked_child_does_not_wait_for_threads_that_it_lacks():
    entered, done = threading.Event(), threading.Event()

    def stay() -> None:
        with alone():
            entered.set()
            done.wait(30)

    thread = threading.Thread(target=stay)
    thread.start()
    entered.wait(30)
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        with shared():
            os._exit(7)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 7
