"""A run ends after the step in progress when it is signalled; afterwards signals do what they did."""

from __future__ import annotations

import signal

import pytest

from palm.training.stopping import asked_to_stop

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def handlers():
    """Python's own, put back at the end."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_the_second_acts_as_before(handlers, number):
    with asked_to_stop() as asked:
        assert not asked.is_set()
        signal.raise_signal(number)
        assert asked.is_set()
        assert signal.getsignal(number) is handlers[number]
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_a_handler_that_python_did_not_set_is_followed_by_the_default(handlers, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda number: None)
        with asked_to_stop() as asked:
            signal.raise_signal(signal.SIGTERM)
            assert asked.is_set()
    assert [signal.getsignal(number) for number in SIGNALS] == [signal.SIG_DFL] * 3


def test_a_hangup_that_nohup_ignores_stays_ignored(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with asked_to_stop() as asked:
        signal.raise_signal(signal.SIGHUP)
        assert not asked.is_set()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
