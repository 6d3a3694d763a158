"""`palm.value_and_grad` asks the model and changes nothing about it."""

import numpy as np
import pytest
import torch
from cases import assert_same_bits, draw_tokens, draw_weights, small

import palm
from palm.spec.parameters import parameters
from palm.torch_impl import next_token_loss

CONFIG = small()
TOKENS = draw_tokens(CONFIG, 2, 6)


@pytest.fixture
def model():
    return palm.from_numpy(CONFIG, draw_weights(CONFIG), backend="torch")


@pytest.fixture
def expected(model):
    """The same by torch's own way."""
    ids = torch.from_numpy(TOKENS)
    loss = next_token_loss(model(ids), ids)
    loss.backward()
    grads = {name: model.get_submodule(name).weight.grad.numpy() for name in parameters(CONFIG)}
    model.zero_grad()
    is_matrix = {name: "attention" in name or "feedforward" in name for name in grads}
    return loss.item(), {name: g.T if is_matrix[name] else g for name, g in grads.items()}


def assert_expected(found, expected) -> None:
    assert found[0] == expected[0]
    assert_same_bits(found[1], {name: np.ascontiguousarray(g) for name, g in expected[1].items()})


def test_it_is_what_backward_gives_in_canonical_layout(model, expected):
    found = palm.value_and_grad(model, TOKENS)
    assert_expected(found, expected)
    assert list(found[1]) == list(parameters(CONFIG))
    assert isinstance(found[0], float)


def test_the_models_own_gradients_are_left_alone(model, expected):
    palm.value_and_grad(model, TOKENS)
    assert all(parameter.grad is None for parameter in model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    assert_expected(palm.value_and_grad(model, TOKENS), expected)
    assert all((parameter.grad == 7).all() for parameter in model.parameters())


def test_frozen_parameters_have_gradients_and_stay_frozen(model, expected):
    model.requires_grad_(False)
    model.norm.weight.requires_grad_(True)
    assert_expected(palm.value_and_grad(model, TOKENS), expected)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["norm.weight"]


def test_it_works_where_gradients_are_switched_off(model, expected):
    with torch.no_grad():
        assert_expected(palm.value_and_grad(model, TOKENS), expected)
        assert not torch.is_grad_enabled()


def test_weights_and_mode_are_left_alone(model):
    before = palm.to_numpy(model)
    model.eval()
    palm.value_and_grad(model, TOKENS)
    palm.activations(model, TOKENS)
    assert_same_bits(palm.to_numpy(model), before)
    assert not model.training


def test_taps_carry_no_graph_and_are_copies(model):
    before = palm.activations(model, TOKENS)
    for tap in palm.activations(model, TOKENS).values():
        tap[:] = 0
    assert_same_bits(palm.activations(model, TOKENS), before)


def test_the_loss_by_hand():
    logits = torch.log(torch.tensor([[1.0, 3.0], [2.0, 6.0], [0.5, 0.5]], dtype=torch.float64))
    loss = next_token_loss(logits, torch.tensor([0, 1, 0], dtype=torch.int32))
    # 3/4 for the second token, 1/4 for the third; the last row predicts nothing.
    assert loss.item() == pytest.approx(-(np.log(0.75) + np.log(0.25)) / 2, rel=1e-15)


def test_the_loss_of_narrow_logits_is_formed_in_float32():
    logits = torch.zeros(3, 1000, dtype=torch.bfloat16)
    assert next_token_loss(logits, torch.tensor([1, 2, 3])).item() == pytest.approx(np.log(1000), rel=1e-6)
