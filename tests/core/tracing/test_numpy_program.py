"""A NumPy program, traced: float64, every operation, its line; and nothing of the user's is changed."""

from __future__ import annotations

import contextlib
import inspect

import numpy as np
import pytest

import palm
from palm.parity.programs.trace import RecordedProgram, read_trace, record_trace
from palm.tracing.fingerprint import of_array
from palm.tracing.numbers import as_written
from palm.tracing.numpy_program import NumpyProgram
from palm.tracing.operation import Change

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 4)).astype(np.float32)
W = RNG.standard_normal((4, 5)).astype(np.float32)


def right(x):
    y = x @ W
    return y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)


def other_eps(x):
    y = x @ W
    return y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6)


def loops(x):
    y = np.empty((3, 5), np.float32)
    for i in range(3):
        y[i] = np.einsum("d,de->e", x[i], W)
    square = np.zeros((3, 1), np.float32)
    np.add(square, np.square(y).sum(-1, keepdims=True) / 5, out=square)
    return y / (square + 1e-5) ** 0.5


def traced(function, *inputs):
    return NumpyProgram(function, inputs, function.__name__)


def test_it_runs_in_float64_and_leaves_everything_as_it_was():
    before = W.copy()
    program = traced(right, X)
    assert W.dtype == np.float32
    assert right.__globals__["W"] is W
    np.testing.assert_array_equal(W, before)
    exact = right.__globals__["W"].astype(np.float64)
    y = X.astype(np.float64) @ exact
    want = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(program.first.outputs["output"], want, rtol=1e-15)
    assert program.dtype == "float32"


def test_every_operation_has_its_line():
    program = traced(right, X)
    _, start = inspect.getsourcelines(right)
    lines = {op.op: op.place.line - start for op in program.operations if op.kind == "operation"}
    assert lines["matmul"] == 1
    assert lines["sqrt"] == 2
    assert [op.name for op in program.operations if op.kind == "parameter"] == ["W"]


def test_a_change_of_a_number_or_a_value_is_obeyed():
    program = traced(right, X)
    [at] = [i for i, op in enumerate(program.operations) if 1e-5 in op.constants]
    numbers = tuple(1e-6 if x == 1e-5 else x for x in program.operations[at].constants)
    changed = program.run(Change(constants={at: numbers})).outputs["output"]
    np.testing.assert_allclose(changed, traced(other_eps, X).first.outputs["output"], rtol=1e-15)
    kept = program.run(values=[at]).values[at]
    same = program.run(Change(values={at: kept})).outputs["output"]
    np.testing.assert_array_equal(same, program.first.outputs["output"])


def test_writing_in_place_and_einsum_are_seen():
    assert palm.compare(right, loops, X).agree


def test_another_number_is_named():
    found = palm.compare(right, other_eps, X)
    assert found.divergences[0].cause == "other constant: 1e-05 for 1e-06"
    assert found.divergences[0].a.source == "return y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)"


@pytest.mark.parametrize("order", [lambda x: x.T, lambda x: x[::-1], lambda x: x.reshape(2, -1)])
def test_a_fingerprint_does_not_know_the_order_and_knows_the_values(order):
    x = RNG.standard_normal((4, 6))
    np.testing.assert_allclose(of_array(order(x).copy()), of_array(x), rtol=1e-12)
    changed = x.copy()
    changed[0, 0] += 1e-6
    assert np.abs(of_array(changed) - of_array(x)).max() > 1e-9


def test_a_program_that_does_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr("palm.tracing.memory.free_memory", lambda: 16 * X.size)
    with pytest.raises(palm.ProbeError, match=r"has \d+ numbers.* are free\. Compare it with fewer"):
        palm.trace(right, X)
    monkeypatch.setattr("palm.tracing.memory.free_memory", lambda: None)
    assert palm.compare(right, right, X).agree


def test_a_fingerprint_of_a_large_array_is_that_of_its_elements():
    x = RNG.standard_normal((700, 101)) * np.logspace(-3, 3, 101)
    x[3, 5], x[600, 7] = np.inf, np.nan
    known = x[np.isfinite(x)]
    rms = np.sqrt(np.mean(known**2))
    y = known / rms
    moments = [np.mean(y), np.mean(np.abs(y)), np.mean(y**3), np.mean(y**4), y.max(), y.min()]
    np.testing.assert_allclose(of_array(x), [known.size / x.size, rms, *moments], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("written", [0.1, 1e-5, 10_000.0, 1 / 3, 8**0.5, 1 / 8**0.5, -1e9])
def test_a_float32_number_is_what_was_written(written):
    assert as_written(np.float32(written)) == pytest.approx(written, rel=1e-15)


def test_a_number_that_nobody_writes_stays_as_it_is():
    x = np.float32(RNG.standard_normal())
    assert as_written(x) == float(x)


def test_a_trace_is_compared_with_a_program_and_with_a_trace(tmp_path):
    one, two = record_trace(traced(right, X)), record_trace(traced(other_eps, X))
    again = read_trace(one.save(tmp_path / "one.trace"))
    assert again.operations == one.operations
    np.testing.assert_array_equal(again.fingerprints, one.fingerprints)
    assert palm.compare(again, right, X).agree
    assert palm.compare(again, one).agree
    found = palm.compare(again, two)
    assert found.divergences[0].cause == "other constant: 1e-05 for 1e-06"
    assert RecordedProgram(again).recorded
    assert repr(again) == f"<Trace of right: {len(one.operations)} operations in float32>"
    with pytest.raises(palm.BundleError, match=r"must end in \.trace"):
        one.save(tmp_path / "one.npz")


@pytest.mark.parametrize(
    "seed", [*range(30), *(pytest.param(s, marks=pytest.mark.whole) for s in range(30, 1000))]
)
def test_a_damaged_trace_is_refused(seed, tmp_path):
    rng = np.random.default_rng(seed)
    file = record_trace(traced(right, X)).save(tmp_path / "one.trace")
    held = bytearray(file.read_bytes())
    kind = seed % 4
    if kind == 0:
        held = held[: rng.integers(0, len(held))]
    elif kind == 1:
        held[rng.integers(0, len(held))] ^= 1 << rng.integers(0, 8)
    elif kind == 2:
        start = rng.integers(0, len(held))
        held[start : start + 20] = rng.bytes(rng.integers(0, 40))
    else:
        for at in rng.integers(0, len(held), 9):
            held[at] = rng.integers(0, 256)
    if bytes(held) == file.read_bytes():
        return
    file.write_bytes(bytes(held))
    with contextlib.suppress(palm.BundleError):
        again = read_trace(file)  # an unused byte
        assert np.array_equal(again.fingerprints, record_trace(traced(right, X)).fingerprints, equal_nan=True)
