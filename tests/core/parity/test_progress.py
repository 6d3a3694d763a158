"""Who waits sees a line after a while; a pipe, a test and a quick comparison see nothing."""

import sys
import time
from io import StringIO
from types import ModuleType, SimpleNamespace

import pytest

from palm.parity import progress as module
from palm.parity.progress import progress


class Terminal(StringIO):
    def isatty(self):
        return True


@pytest.fixture
def eager(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.02)
    monkeypatch.setattr(module, "_PERIOD", 0.02)


def run(monkeypatch, stream, seconds=0.2):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress(9) as finished:
        finished("forward")
        time.sleep(seconds)
    return stream.getvalue()


def test_a_terminal_shows_how_far_it_is_and_nothing_stays(eager, monkeypatch):
    shown = run(monkeypatch, Terminal())
    assert "palm.compare: 1 of 9 steps, 0 s, last: forward" in shown
    assert shown.endswith("\r")
    assert not shown.split("\r")[-2].strip()


def test_a_notebook_shows_it_too(eager, monkeypatch):
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel="a kernel")
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert "1 of 9 steps" in run(monkeypatch, StringIO())


def test_a_pipe_shows_nothing(eager, monkeypatch):
    assert run(monkeypatch, StringIO()) == ""


def test_what_is_over_before_two_seconds_shows_nothing(monkeypatch):
    assert run(monkeypatch, Terminal(), seconds=0.0) == ""


def test_the_line_goes_when_the_comparison_fails(eager, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)

    def fail():
        with progress(0):
            time.sleep(0.2)
            raise KeyError("gone")

    with pytest.raises(KeyError):
        fail()
    assert "palm.compare: 0 s" in stream.getvalue()
    assert stream.getvalue().endswith("\r")


def test_a_program_without_a_console_is_not_watched(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert not module.is_watched()
    with progress(9) as finished:
        finished("forward")
