"""The processes of a training must be given the same."""

import json

import pytest

import palm
from palm.training.alike import check_alike


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
