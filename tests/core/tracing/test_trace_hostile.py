"""Traces that an enemy sealed: every read ends in a `BundleError`, or gives a trace that can be shown."""

import json

import numpy as np
import pytest

from palm import BundleError
from palm.parity.programs.trace import _digest, read_trace, record_trace
from palm.tracing.numpy_program import NumpyProgram


@pytest.fixture
def trace(tmp_path):
    """A whole one; it has a constant that is not finite."""
    program = NumpyProgram(lambda x: np.maximum(x * 2.0, -np.inf), (np.ones(3),), "right")
    return record_trace(program).save(tmp_path / "one.trace")


def reseal(trace, edit):
    with np.load(trace, allow_pickle=False) as held:
        arrays = {name: held[name] for name in held.files if name != "sha256"}
    about = json.loads(arrays["about"].tobytes())
    edit(about)
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    arrays["sha256"] = np.frombuffer(_digest(arrays).encode(), np.uint8)
    with trace.open("wb") as file:
        np.savez(file, **arrays)


@pytest.mark.parametrize("value", [None, 7, "x", [7], {"x": "y"}, True], ids=str)
@pytest.mark.parametrize("key", ["schema", "version", "label", "dtype", "operations", "outputs"])
def test_a_sealed_trace_of_other_types_is_refused(trace, key, value):
    if isinstance(value, str) and key in ("label", "dtype"):
        value = "\x1b[2J" if key == "label" else None
    reseal(trace, lambda about: about.update({key: value}))
    with pytest.raises(BundleError):
        read_trace(trace)


@pytest.mark.parametrize("value", [None, -1, [None], [[1]], {"file": 3}, 2.5], ids=str)
@pytest.mark.parametrize(
    "key", ["op", "kind", "shape", "dtype", "inputs", "moves", "draws", "rounds", "name"]
)
def test_an_operation_of_other_types_is_refused(trace, key, value):
    reseal(trace, lambda about: about["operations"][-1].update({key: value}))
    with pytest.raises(BundleError):
        read_trace(trace)


@pytest.mark.parametrize("part", [lambda op: op, lambda op: op["place"]], ids=["operation", "place"])
def test_what_an_operation_does_not_have_is_refused(trace, part):
    reseal(trace, lambda about: part(about["operations"][-1]).update(__class__=0.5))
    with pytest.raises(BundleError, match=r"__class__ must be left out; got 0\.5"):
        read_trace(trace)


def test_a_good_trace_is_read(trace):
    reseal(trace, lambda about: None)
    assert read_trace(trace).label == "right"
