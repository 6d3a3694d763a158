"""Any NumPy program is traced, in float64, and nothing of it is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import palm
from palm.tracing.numpy_program import NumpyProgram
from palm.tracing.sample import rounded

X = np.random.default_rng(0).standard_normal((4, 6))
W = np.random.default_rng(1).standard_normal((6, 6)).astype(np.float32)


def into(x: Any) -> Any:
    y = np.empty_like(x)
    np.multiply(x, 2, out=y)
    np.add(y, 1, y)
    return y


def in_place(x: Any) -> Any:
    y = x.copy()
    y += 1
    y *= W[0]
    y[0] = 3
    y[:, 1] -= 2
    return y


def of_the_input(x: Any) -> Any:
    x += 1
    W[0] += 1
    return x @ W


def added_at(x: Any) -> Any:
    y = x.copy()
    row = y[0]
    np.add.at(y, [0, 0], x[1])
    return row * 2


def by_method(x: Any) -> Any:
    y = np.empty_like(x)
    y.fill(3)
    y[0] = x[0]
    y.sort()
    return y * 2


def put_along(x: Any) -> Any:
    y = x.copy()
    np.put_along_axis(y, np.argmax(y, 1)[:, None], 0.0, 1)
    return y


PROGRAMS: dict[str, Callable[..., Any]] = {
    "out=": into,
    "in place": in_place,
    "of the input": of_the_input,
    "added at": added_at,
    "by method": by_method,
    "put along": put_along,
    "fancy": lambda x: x[[0, 2]][:, np.array([1, 1])] + x[x[:, 0] > 0].sum(),
    "einsum": lambda x: np.einsum("ij,jk->ik", x, W),
    "linalg": lambda x: (np.linalg.svd(x)[1], np.linalg.qr(x).R, np.linalg.norm(x)),
    "scalar": np.sum,
    "containers": lambda x: (x, [x * 2, {"mean": x.mean()}]),
    "complex": np.fft.fft,
    "vectorize": lambda x: np.vectorize(lambda v: v * 2)(x),  # noqa: PLW0108
    "float32": lambda x: (x.astype(np.float32) @ W) / np.float32(3),
    "own generator": lambda x: x * np.random.default_rng(0).random(6),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_agrees_with_itself_and_is_not_changed(name):
    program, before = PROGRAMS[name], (X.copy(), W.copy(), np.random.get_state()[1].copy())
    found = palm.compare(program, program, X, frameworks=("numpy", "numpy"))
    assert found.outcome == "agree", found.verdict
    for a, b in zip(before, (X, W, np.random.get_state()[1]), strict=True):
        assert np.array_equal(a, b)
        assert a.dtype == b.dtype


@pytest.mark.parametrize("name", ["out=", "added at", "by method", "complex", "put along"])
def test_one_that_differs_a_little_is_told_from_it(name):
    other = lambda x: PROGRAMS[name](x) * (1 + 1e-6)  # noqa: E731
    assert palm.compare(PROGRAMS[name], other, X, frameworks=("numpy", "numpy")).outcome == "differ"


def test_a_number_that_is_written_to_an_array_is_named():
    def filled(number: float) -> Any:
        def program(x: Any) -> Any:
            y = np.empty_like(x)
            y.fill(number)
            y[0] = x[0]
            return y * 2

        return program

    found = palm.compare(filled(1.0), filled(2.0), X, frameworks=("numpy", "numpy"))
    assert [one.a.op for one in found.divergences] == ["fill"]


@pytest.mark.parametrize("seed", range(3))
def test_numpys_own_random_numbers_are_not_deterministic_whatever_seed_the_user_has_set(seed):
    np.random.seed(seed)
    program = lambda x: x * np.random.rand(6)  # noqa: E731
    found = palm.compare(program, program, X, frameworks=("numpy", "numpy"))
    assert found.outcome == "cannot tell"
    assert "not deterministic" in found.verdict


def test_a_program_of_more_operations_than_are_allowed_is_refused():
    def looping(x: np.ndarray) -> np.ndarray:
        for _ in range(20):
            x = x + 1.0
        return x

    assert len(NumpyProgram(looping, (np.ones(3),), "looping", 21).operations) == 21
    with pytest.raises(palm.ProbeError, match="at most 20 operations"):
        NumpyProgram(looping, (np.ones(3),), "looping", 20)


def test_rounding_leaves_alone_what_has_no_room_for_it():
    largest = np.array([np.finfo(np.float64).max, -np.finfo(np.float64).max, np.inf, 1.0 + 2.0**-52])
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(rounded(largest, 23, 1.0, np), [*largest[:3], 1.0])
