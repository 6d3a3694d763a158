"""The windows of an evaluation: each token is predicted once, and sees what was promised."""

import pytest

from palm.training.evaluation import windows_of

CASES = [(2, 4, 4), (5, 4, 4), (6, 4, 4), (13, 4, 4), (13, 4, 1), (14, 4, 3), (3, 8, 2), (40, 8, 5)]


def predicted(windows):
    return [token for window in windows for token in range(window.stop - window.predicted, window.stop)]


@pytest.mark.parametrize(("tokens", "length", "stride"), CASES)
def test_each_token_but_the_first_is_predicted_once_with_context(tokens, length, stride):
    found = list(windows_of(tokens, length, stride))
    assert predicted(found) == list(range(1, tokens))
    for window in found:
        assert window.stop - window.start <= length + 1
        first = window.stop - window.predicted
        assert first - window.start >= min(first, length - stride + 1)


def test_a_token_that_is_predicted_twice_would_be_found():
    found = list(windows_of(13, 4, 4))
    assert predicted([*found, found[-1]]) != list(range(1, 13))


def test_one_token_has_no_windows():
    assert list(windows_of(1, 4, 4)) == []
