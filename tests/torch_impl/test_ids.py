"""Ids on an accelerator are not read by the host; outside the vocabulary they give NaN, not a function."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import assert_explains, draw_tokens, draw_weights, small
from torch.utils._python_dispatch import TorchDispatchMode

import palm
from palm import TokenError, torch_impl
from palm.spec.positions import slope_list
from palm.torch_impl import model as torch_model
from palm.torch_impl import next_token_loss

CONFIG = small()
TOKENS = torch.from_numpy(draw_tokens(CONFIG, 2, 6))
MODEL = palm.from_numpy(CONFIG, draw_weights(CONFIG, dtype="float32"), backend="torch")
# Importing torch's compiler uses parts of torch that torch itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Reads(TorchDispatchMode):
    """Counts the values that the host reads from tensors, each of which waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class Copies(TorchDispatchMode):
    """Counts the tensors made from numbers of the host's, each of which a GPU would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        moved = func is torch.ops.aten._to_copy.default and (kwargs or {}).get("device") not in (
            None,
            args[0].device,
        )
        self.count += func is torch.ops.aten.lift_fresh.default or moved
        return func(*args, **(kwargs or {}))


def unread(tokens: torch.Tensor) -> torch.Tensor:
    """Logits as on an accelerator, where ids are not read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_model, "_readable", lambda tokens: False)
        return MODEL(tokens)


def test_ids_are_read_in_this_machines_memory_only():
    seen = []
    torch.vmap(lambda ids: (seen.append(torch_model._readable(ids)), ids)[1])(TOKENS)
    assert torch_model._readable(TOKENS)
    assert not torch_model._readable(TOKENS.to("meta"))  # the one device that is not the CPU everywhere
    assert seen == [False]


def test_a_training_step_reads_nothing_and_reading_would_be_noticed():
    with Reads() as reads:
        next_token_loss(unread(TOKENS), TOKENS).backward()
    MODEL.zero_grad()
    assert reads.count == 0
    with Reads() as reads:
        MODEL(TOKENS)
    assert reads.count == 2  # the smallest and the largest id, in this machine's memory


def test_a_training_step_copies_nothing_from_the_host_and_a_copy_would_be_noticed():
    for positions in ("alibi", "rotary"):
        model = palm.build(small(positions=positions), backend="torch")
        with Copies() as copies:
            next_token_loss(model(TOKENS), TOKENS).backward()
        assert copies.count == 0
    for copy in (lambda: torch.tensor([0.5, 0.25]), lambda: TOKENS.to("meta")):
        with Copies() as copies:
            copy()
        assert copies.count == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("heads", [1, 3, 8, 12, 48])
def test_slopes_have_the_bits_of_their_list(heads, dtype):
    slopes = torch_impl.alibi_slopes(small(heads=heads), device=torch.device("cpu"), dtype=dtype)
    assert torch.equal(slopes, torch.tensor(slope_list(heads), dtype=dtype))


def test_ids_in_this_machines_memory_are_read_and_refused():
    with pytest.raises(TokenError) as raised:
        MODEL(torch.tensor([1, 13]))
    assert_explains(raised, "tokens must lie in [0, num_tokens) = [0, 13)", "token=13", "Check the tokenizer")


@pytest.mark.parametrize("wrong", [-1, 13, 2**40, -(2**62)])
def test_an_unread_id_outside_the_vocabulary_gives_nan_in_its_sequence_alone(wrong):
    tokens = TOKENS.clone()
    tokens[1, 3] = wrong
    logits, right = unread(tokens), MODEL(TOKENS)
    assert torch.equal(logits[0], right[0])
    assert logits[1, 3:].isnan().all()


def test_unread_ids_inside_it_give_the_same_bits_and_gradients():
    found, expected = (next_token_loss(logits, TOKENS) for logits in (unread(TOKENS), MODEL(TOKENS)))
    assert torch.equal(found, expected)
    parameters = list(MODEL.parameters())
    grads = zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    )
    assert all(torch.equal(one, other) for one, other in grads)


def test_a_compiled_model_gives_nan_too():
    compiled = torch.compile(MODEL, backend="eager", fullgraph=True)
    tokens = TOKENS.clone()
    tokens[1, 3] = -1
    logits = compiled(tokens)
    assert logits[1, 3:].isnan().all()
    assert logits[0].isfinite().all()


def test_a_mapped_model_gives_nan_too():
    logits = torch.vmap(MODEL)(torch.tensor([[1, 2], [1, 13]]))
    assert logits.isnan().tolist() == [[[False] * 13] * 2, [[True] * 13] * 2]


def test_a_decoder_reads_its_prompts_wherever_the_model_is(monkeypatch):
    monkeypatch.setattr(torch_model, "_readable", lambda tokens: False)  # as on an accelerator
    with pytest.raises(TokenError, match="token=13"):
        torch_impl.Decoder(MODEL, np.array([[1, 13]]), np.array([2]), 8)


def test_a_decoder_refuses_given_ids_outside_the_vocabulary():
    decoder = palm.torch_impl.Decoder(MODEL, np.array([[1, 2]]), np.array([2]), 64)
    decoder.feed(np.array([3]))
    with pytest.raises(TokenError, match="token=13"):
        decoder.feed(np.array([13]))
