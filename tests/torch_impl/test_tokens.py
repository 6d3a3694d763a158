"""What a torch model accepts as tokens: called itself, and through palm's doors."""

import numpy as np
import pytest
import torch
from cases import assert_explains, small

import palm
from palm import TokenError

CONFIG = small()
MODEL = palm.build(CONFIG, backend="torch")
SHAPE = ["tokens must have shape (..., n) with at least one token", "Pass n ≥ 1"]
INTEGERS = ["tokens must be integers", "Cast them to an integer type"]
RANGE = ["tokens must lie in [0, num_tokens) = [0, 13)"]
BAD = {
    "empty": (torch.zeros(0, dtype=torch.long), SHAPE),
    "no sequences": (torch.zeros(0, 3, dtype=torch.long), SHAPE),
    "empty sequences": (torch.zeros(2, 0, dtype=torch.long), SHAPE),
    "a single number": (torch.tensor(3), SHAPE),
    "floats": (torch.tensor([1.0, 2.0]), INTEGERS),
    "halves": (torch.tensor([1.0, 2.0], dtype=torch.float16), INTEGERS),
    "bools": (torch.tensor([True, False]), INTEGERS),
    "complex": (torch.tensor([1j]), INTEGERS),
    "negative": (torch.tensor([0, -1, 2]), [*RANGE, "token=-1", "Check the tokenizer"]),
    "too large": (torch.tensor([[0, 1], [13, 2]]), [*RANGE, "token=13", "Check the tokenizer"]),
}
DOORS = {
    "the model": MODEL,
    "its taps": MODEL.activations,
    "palm.activations": lambda tokens: palm.activations(MODEL, tokens),
    "palm.value_and_grad": lambda tokens: palm.value_and_grad(MODEL, tokens),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("what", BAD)
def test_bad_tokens_are_refused_alike_at_every_door(what, door):
    tokens, parts = BAD[what]
    with pytest.raises(TokenError) as raised:
        DOORS[door](tokens)
    assert_explains(raised, *parts)


@pytest.mark.parametrize("tokens", [[1, 2], np.array([1, 2]), (1, 2), 3, None, "12"])
def test_a_model_itself_takes_tensors_only(tokens):
    for door in ("the model", "its taps"):
        with pytest.raises(TokenError) as raised:
            DOORS[door](tokens)
        name = type(tokens).__name__
        assert_explains(raised, "tokens must be a torch.Tensor", f"got {name}", "Use torch.as_tensor")


@pytest.mark.parametrize("tokens", [[1, 2, 3], np.array([1, 2, 3], np.uint8), torch.tensor([1, 2, 3])])
def test_palms_doors_take_lists_arrays_and_tensors(tokens):
    expected = MODEL(torch.tensor([1, 2, 3])).detach().numpy()
    assert np.array_equal(palm.activations(MODEL, tokens)["logits"], expected)
    assert palm.value_and_grad(MODEL, tokens)[0] == palm.value_and_grad(MODEL, [1, 2, 3])[0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_every_signed_dtype_and_bytes_give_the_same_logits(dtype):
    tokens = torch.tensor([[1, 2, 3], [12, 0, 4]])
    assert torch.equal(MODEL(tokens.to(dtype)), MODEL(tokens))


def test_a_loss_needs_a_next_token():
    with pytest.raises(TokenError) as raised:
        palm.value_and_grad(MODEL, torch.tensor([[1], [2]]))
    assert_explains(raised, "tokens must have n ≥ 2", "n=1", "Pass longer")


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_dtypes_give_the_same_logits_too(dtype):
    tokens = torch.tensor([[1, 2, 3], [12, 0, 4]])
    assert torch.equal(MODEL(tokens.to(dtype)), MODEL(tokens))


def test_tokens_on_meta_are_refused_by_a_model_that_is_not():
    with pytest.raises(TokenError):
        MODEL(torch.zeros(3, dtype=torch.long, device="meta"))


def test_tokens_on_meta_are_refused_by_palms_doors():
    with pytest.raises(TokenError):
        palm.activations(MODEL, torch.zeros(3, dtype=torch.long, device="meta"))
