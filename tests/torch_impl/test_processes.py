"""What a process says once another one of its mesh is gone."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from waiting import HEARD, status

from palm import BackendError
from palm.torch_impl import processes

LOST = "[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:37062"


@pytest.mark.parametrize(
    "ask", [partial(processes.share, b"x"), partial(processes.agreed, True), processes.wait]
)
def test_an_error_that_comes_of_another_process_says_so(monkeypatch, ask):
    def fail(*_, **__):
        raise RuntimeError(LOST)

    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(dist, "get_backend_config", lambda: "cpu:gloo")
    for name in ("all_reduce", "barrier", "broadcast"):
        monkeypatch.setattr(dist, name, fail)
    with pytest.raises(BackendError, match=r"the processes of a mesh must all go on; got no answer .*/gloo"):
        ask()


def test_an_error_of_this_process_stays_what_it_is():
    with pytest.raises(RuntimeError, match="out of memory"), processes.together():
        raise torch.OutOfMemoryError("out of memory")


def test_a_signal_ends_a_process_that_waits_for_others():
    assert status("torch_impl", interruptible=True) == HEARD


def test_what_is_waited_for_is_given_or_raised():
    assert processes.interruptibly(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        processes.interruptibly(lambda: 1 / 0)


@pytest.mark.parametrize(
    "what",
    [
        *("steps", "data", "mesh", "weights", "nothing", "weights alike"),
        *("weights in a checkpoint", "weights in a checkpoint alike", "weights or a checkpoint", "out"),
        pytest.param("weights or none", marks=pytest.mark.whole),
    ],
)
def test_processes_that_are_given_something_else_all_stop_before_the_first_step(what):
    """Before, they trained another run, or waited for each other."""
    found = run_processes(2, "unlike", what)
    assert ("must be" in found.get("error", "")) == (what != "nothing" and "alike" not in what)
    if what.startswith("weights") and found:
        assert "all processes must be given the same" in found["error"]
