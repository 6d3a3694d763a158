"""The processes of a training must be given the same."""

import json

import numpy as np
import pytest

import palm
from palm.training import start
from palm.training.alike import check_alike
from palm.training.start import Start, digest_of


class Processes:
    """This process among several: what the first one shares, and whether another one disagrees."""

    def __init__(self, first, *, others_differ=False, several=True):
        self.first, self.others_differ, self.is_several = first, others_differ, several

    def several(self):
        return self.is_several

    def share(self, content):
        return json.dumps(self.first).encode()

    def agreed(self, flag):
        return flag or self.others_differ


RECIPE = {"learning_rate": 0.1, "steps": 4}
FIRST = {"learning_rate": "0.1", "steps": "4", "data": "abc"}


def test_processes_that_were_given_the_same_go_on():
    check_alike(Processes(FIRST), recipe=RECIPE, data="abc")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"recipe": {**RECIPE, "steps": 3}, "data": "abc"}, "steps=3, and 4 in the first one"),
        ({"recipe": RECIPE, "data": "abd"}, "data=abd, and abc in the first one"),
        ({"recipe": RECIPE}, "data=None, and abc in the first one"),
    ],
)
def test_what_differs_is_named_in_the_process_that_has_it(given, told):
    with pytest.raises(palm.ConfigError, match=f"must be given the same; got {told}"):
        check_alike(Processes(FIRST), **given)


def test_the_others_stop_too_and_say_so():
    with pytest.raises(palm.ConfigError, match="another one was given something else"):
        check_alike(Processes(FIRST, others_differ=True), recipe=RECIPE, data="abc")


def test_a_process_alone_asks_nobody():
    check_alike(Processes({}, several=False), recipe=RECIPE)


def weights(**changed):
    arrays = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(5, np.float32)}
    return arrays | changed


def test_weights_that_are_the_same_have_one_digest_however_they_lie():
    turned = np.asfortranarray(weights()["a"])
    spread = np.repeat(weights()["b"], 2)[::2]
    assert digest_of(weights()) == digest_of({"b": spread, "a": turned}) == digest_of(weights())


@pytest.mark.parametrize(
    "changed",
    [
        {"b": np.nextafter(np.ones(5, np.float32), 2)},
        {"b": np.ones(5)},
        {"b": np.ones((5, 1), np.float32)},
        {"b": np.array([1, 1, 1, 1, -1], np.float32)},
        {"c": np.ones(5, np.float32)},
        {"a": np.arange(12, dtype=np.float32).reshape(4, 3).T.copy()},
    ],
    ids=["one unit", "dtype", "shape", "the last number", "name", "order"],
)
def test_other_weights_have_another_digest(changed):
    assert digest_of(weights()) != digest_of(weights(**changed))


def test_every_number_of_large_weights_counts():
    large = np.zeros((3000, 1000), np.float32)
    whole = digest_of({"a": large})
    for at in (0, 1_500_001, large.size - 1):
        large.flat[at] = 1
        assert digest_of({"a": large}) != whole
        large.flat[at] = 0
    assert digest_of({"a": large}) == whole


def test_the_processes_and_the_run_have_one_digest_that_is_formed_once(monkeypatch):
    formed = []
    monkeypatch.setattr(start, "digest_of", lambda arrays: formed.append(arrays) or digest_of(arrays))
    own = Start(weights())
    assert own.digest == own.told("torch")["start"]["weights"] == digest_of(weights())
    assert len(formed) == 1
    assert Start().digest is None
