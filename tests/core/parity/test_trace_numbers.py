"""The numbers in a trace that was sealed anew: numbers, or a `BundleError`."""

import json

import numpy as np
import pytest

import palm
from palm import BundleError
from palm.parity.programs.trace import _digest, read_trace


def program(x):
    return np.tanh(x @ x.T) * 2


@pytest.fixture
def path(tmp_path):
    return palm.trace(program, np.arange(6.0).reshape(2, 3) / 7).save(tmp_path / "t.trace")


def forge(path, constants):
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "sha256"}
    about = json.loads(arrays["about"].tobytes())
    about["operations"][-1]["constants"] = constants
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    arrays["sha256"] = np.frombuffer(_digest(arrays).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, **arrays)


@pytest.mark.parametrize("constants", [["x"], [None], [[1]], [True], [10**400], 5, None])
def test_what_is_no_number_is_refused(path, constants):
    forge(path, constants)
    with pytest.raises(BundleError, match="must be a trace that palm wrote"):
        read_trace(path)


@pytest.mark.parametrize("constants", [[], [2], [-0.5, float("inf")]])
def test_numbers_are_read(path, constants):
    forge(path, constants)
    assert read_trace(path).operations[-1].constants == tuple(constants)
