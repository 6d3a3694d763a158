"""What a model accepts as tokens."""

import numpy as np
import pytest
from cases import assert_explains, small

from palm import TokenError
from palm.spec.tokens import check_tokens

CONFIG = small()
LAST = CONFIG.num_tokens - 1
EMPTY = [[], np.zeros((0,), int), np.zeros((2, 0), int), np.zeros((0, 3), int), np.array(3), 3, None]


@pytest.mark.parametrize("tokens", EMPTY, ids=lambda t: f"{type(t).__name__}{np.shape(t)}")
def test_there_must_be_at_least_one_token(tokens):
    with pytest.raises(TokenError) as raised:
        check_tokens(tokens, CONFIG)
    shape = f"shape={np.shape(tokens)}"
    assert_explains(raised, "tokens must have shape (..., n) with at least one token", shape, "Pass n ≥ 1")


@pytest.mark.parametrize(
    ("tokens", "dtype"),
    [
        ([1.0, 2.0], "float64"),
        (np.float32([1, 2]), "float32"),
        ([True, False], "bool"),
        ([1j], "complex128"),
        ([2**70], "object"),
        (["1"], "<U1"),
        ([None], "object"),
    ],
)
def test_tokens_must_be_integers(tokens, dtype):
    with pytest.raises(TokenError) as raised:
        check_tokens(tokens, CONFIG)
    assert_explains(raised, "tokens must be integers", f"dtype={dtype}", "Cast them to an integer type")


@pytest.mark.parametrize(
    ("tokens", "worst"),
    [
        ([0, -1], -1),
        ([[0, 1], [LAST + 1, 0]], LAST + 1),
        ([-3, 99], -3),
        (np.int8([-128]), -128),
        (np.uint8([255]), 255),
        (np.uint64([2**63 + 1]), 2**63 + 1),
    ],
)
def test_tokens_must_lie_in_the_vocabulary(tokens, worst):
    with pytest.raises(TokenError) as raised:
        check_tokens(tokens, CONFIG)
    assert_explains(raised, "tokens must lie in [0, num_tokens) = [0, 13)", f"token={worst}.", "num_tokens")


def test_ragged_lists_are_refused():
    with pytest.raises(TokenError) as raised:
        check_tokens([[1, 2], [3]], CONFIG)
    assert_explains(raised, "tokens must be an array of integers", "inhomogeneous", "Use an integer array")


@pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 2, 1)])
def test_a_loss_needs_two_tokens_in_each_row(shape):
    tokens = np.zeros(shape, int)
    check_tokens(tokens, CONFIG)
    with pytest.raises(TokenError) as raised:
        check_tokens(tokens, CONFIG, at_least=2)
    assert_explains(raised, "tokens must have n ≥ 2 because the loss", "n=1", "Pass longer")
    check_tokens(np.zeros((*shape[:-1], 2), int), CONFIG, at_least=2)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_every_integer_dtype_becomes_int64(dtype):
    tokens = check_tokens(np.array([[0, LAST], [1, 2]], dtype), CONFIG)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == [[0, LAST], [1, 2]]


@pytest.mark.parametrize("tokens", [[0, LAST], (0, LAST), [[[0], [LAST]]], [np.int32(0), LAST]])
def test_nested_sequences_become_arrays(tokens):
    assert check_tokens(tokens, CONFIG).tolist() == np.array(tokens).tolist()


def test_a_tensor_is_detached_and_brought_to_the_host_first():
    class Tensor:
        def __init__(self, calls: list[str]) -> None:
            self.calls = calls

        def detach(self):
            return Tensor([*self.calls, "detach"])

        def cpu(self):
            return [1, 2] if self.calls == ["detach"] else None

    assert check_tokens(Tensor([]), CONFIG).tolist() == [1, 2]


def test_the_checked_tokens_are_a_copy():
    tokens = np.array([1, 2])
    check_tokens(tokens, CONFIG)[0] = 5
    assert tokens.tolist() == [1, 2]


def test_durations_are_no_tokens():
    with pytest.raises(TokenError, match=r"must be integers; got dtype=timedelta64"):
        check_tokens(np.array([1, 2], "m8[s]"), CONFIG)
