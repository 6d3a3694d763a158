"""Per-sample gradients and Jacobians by torch.func, and models on the meta device."""

from __future__ import annotations

import pytest
import torch
from cases import assert_same_bits, draw_tokens, draw_weights, small
from torch.func import functional_call, grad, jacrev, jvp, vmap

import palm
from palm.spec.initial import Initial
from palm.torch_impl import PaLM, next_token_loss

# torch's own forward mode is still compiled by torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
EVERY = [("alibi", "blockwise"), ("rotary", "blockwise"), ("rotary", "sdpa"), ("alibi", "textbook")]


def model_of(positions: str = "alibi", attention: str = "blockwise") -> PaLM:
    config = small(positions=positions, share_kv=positions == "alibi", tie_embeddings=positions == "alibi")
    return palm.from_numpy(config, draw_weights(config), backend="torch", attention=attention)


@pytest.mark.parametrize(("positions", "attention"), EVERY)
def test_gradients_of_each_sample_are_those_of_a_loop(positions, attention):
    model = model_of(positions, attention)
    ids = torch.from_numpy(draw_tokens(model.config, 4, 9))
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def loss(weights, ids):
        return next_token_loss(functional_call(model, weights, (ids,)), ids)

    each = vmap(grad(loss), in_dims=(None, 0))(weights, ids)
    for row, sample in enumerate(ids):
        model.zero_grad()
        next_token_loss(model(sample), sample).backward()
        for name, parameter in model.named_parameters():
            error = (each[name][row] - parameter.grad).norm() / parameter.grad.norm()
            assert error <= 1e-13, name
    assert not torch.allclose(each["norm.weight"][0], each["norm.weight"][1])


def test_jacobians_forward_and_backward_are_the_same():
    model = model_of()
    ids = torch.from_numpy(draw_tokens(model.config, 5))
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    along = torch.linspace(-1, 1, model.config.dim, dtype=torch.float64)

    def logits(scale):
        return functional_call(model, {**weights, "norm.weight": scale}, (ids,))

    jacobian = jacrev(logits)(weights["norm.weight"])
    _, tangent = jvp(logits, (weights["norm.weight"],), (along,))
    torch.testing.assert_close(jacobian @ along, tangent, rtol=1e-12, atol=1e-14)
    assert tangent.norm() > 0


def test_a_model_is_built_on_meta_without_a_number_drawn(monkeypatch):
    config = small()
    monkeypatch.setattr(Initial, "__getitem__", lambda *_: pytest.fail("a number was drawn"))
    with torch.device("meta"):
        models = [palm.build(config, backend="torch"), PaLM(config)]
    models.append(palm.build(config, backend="torch", device="meta"))
    for model in models:
        assert all(parameter.is_meta for parameter in model.parameters())
        logits = model(torch.zeros(2, 3, dtype=torch.long, device="meta"))
        assert (logits.is_meta, logits.shape) == (True, (2, 3, config.num_tokens))


def test_a_model_of_meta_is_filled_by_to_empty_and_its_state():
    expected = palm.build(small(), backend="torch", seed=3)
    with torch.device("meta"):
        model = palm.build(small(), backend="torch")
    model.to_empty(device="cpu").load_state_dict(expected.state_dict())
    assert_same_bits(palm.to_numpy(model), palm.to_numpy(expected))
    ids = torch.tensor([1, 2, 3])
    assert torch.equal(model(ids), expected(ids))


def test_without_a_device_a_model_is_built_on_the_default_one():
    assert palm.build(small(), backend="torch").norm.weight.device == torch.device("cpu")
    torch.set_default_device("meta")
    try:
        assert palm.build(small(), backend="torch").norm.weight.is_meta
        assert not palm.build(small(), backend="torch", device="cpu").norm.weight.is_meta
    finally:
        torch.set_default_device(None)
