"""What a callable is called: by its name, or by where it is defined."""

from functools import partial

import numpy as np

from palm.parity.label import label_of


def port(ids):
    return ids


class Port:
    def logits(self, ids):
        return ids

    def __call__(self, ids):
        return ids


def label(function):
    return label_of(function, "palm")


def test_what_has_a_name_is_called_by_it():
    assert label(port) == "port"
    assert label(Port()) == "Port"
    assert label(Port().logits) == "Port.logits"
    assert label(partial(port)) == "partial of port"
    assert label(partial(Port().logits)) == "partial of Port.logits"
    assert label(np.abs) == "absolute"


def test_what_has_none_is_called_by_where_it_is_defined():
    line = test_what_has_none_is_called_by_where_it_is_defined.__code__.co_firstlineno
    assert label(lambda ids: ids) == f"function at test_label.py:{line + 2}"
    assert label(partial(lambda ids: ids)) == f"partial of function at test_label.py:{line + 3}"


def test_two_sides_are_never_called_the_same():
    def palm(ids):
        return ids

    assert label(palm) == "palm (your function)"
