"""Products by oneDNN: the function of F.linear, in every derivative and transform, and only where it fits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import small

import palm
from palm.torch_impl import linear, next_token_loss
from palm.torch_impl.linear import _by_onednn

X, W, DX, DW = (
    torch.randn(*shape, generator=torch.Generator().manual_seed(i))
    for i, shape in enumerate([(3, 5, 8), (7, 8), (3, 5, 8), (7, 8)])
)

# torch's own forward mode is still compiled by torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_float32_on_a_cpu_goes_by_onednn_and_what_has_rules_of_its_own_does_not():
    assert _by_onednn(X, W)
    assert not _by_onednn(X.double(), W.double())
    assert not _by_onednn(X.bfloat16(), W.bfloat16())
    assert not _by_onednn(X.to("meta"), W)
    with torch.autocast("cpu", torch.bfloat16):
        assert not _by_onednn(X, W)
        assert linear(X, W).dtype == torch.bfloat16


def gradients(function, order):
    x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
    found = function(x, w).pow(3).sum()
    for _ in range(order):
        grads = torch.autograd.grad(found, (x, w), create_graph=True)
        found = sum(g.pow(2).sum() for g in grads)
    return [g.detach() for g in grads]


@pytest.mark.parametrize("order", [1, 2])
def test_derivatives_are_those_of_f_linear(order):
    for one, other in zip(gradients(linear, order), gradients(F.linear, order), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3 * other.abs().max().item())


@pytest.mark.parametrize("enabled", [True, False])
def test_forward_mode_is_that_of_f_linear_also_without_gradients(enabled):
    with torch.set_grad_enabled(enabled):
        for one, other in zip(
            torch.func.jvp(linear, (X, W), (DX, DW)), torch.func.jvp(F.linear, (X, W), (DX, DW)), strict=True
        ):
            close(one, other)


def test_no_rows_give_no_rows():
    for shape in ((0, 5, 8), (3, 0, 8), (0, 8)):
        assert linear(torch.zeros(shape), W).shape == F.linear(torch.zeros(shape), W).shape


@pytest.mark.parametrize("remat", [False, True])
def test_a_backward_pass_inside_autocast_has_the_gradients_of_one_outside(remat):
    model, ids, found = palm.build(small(), backend="torch"), torch.arange(8)[None], []
    for is_inside in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            loss = next_token_loss(model(ids, remat=remat), ids)
            if is_inside:
                loss.backward()
        if not is_inside:
            loss.backward()
        found.append([weight.grad.clone() for weight in model.parameters()])
        model.zero_grad()
    for inside, outside in zip(*found, strict=True):
        torch.testing.assert_close(inside, outside, rtol=0.1, atol=0.02 * outside.abs().max().item())


def test_vmap_is_that_of_f_linear():
    close(torch.vmap(linear, (0, None))(X, W), F.linear(X, W))
    close(torch.vmap(linear, (None, 0))(X, torch.stack([W, DW]))[1], F.linear(X, DW))


def test_a_model_can_be_mapped_over_and_differentiated_forward():
    model = palm.build(small(), backend="torch")
    tokens = torch.arange(8)[None]
    weights = {name: p.detach() for name, p in model.named_parameters()}
    two = {name: torch.stack([p, 2 * p]) for name, p in weights.items()}
    logits = torch.vmap(lambda w: torch.func.functional_call(model, w, (tokens,)))(two)
    close(logits[0], model(tokens).detach())
    assert not torch.allclose(logits[1], logits[0])

    def of(scale):
        return torch.func.functional_call(model, {n: p * scale for n, p in weights.items()}, (tokens,))

    one = torch.tensor(1.0)
    _, tangent = torch.func.jvp(of, (one,), (one,))
    slope = (of(one + 1e-2) - of(one - 1e-2)) / 2e-2
    assert (tangent - slope).norm() < 1e-2 * slope.norm()
    assert tangent.norm() > 0


def test_text_is_written_under_autocast():
    model = palm.build(small(), backend="torch")
    with torch.autocast("cpu", torch.bfloat16):
        assert len(palm.generate(model, [1, 2], max_new_tokens=3).tokens) == 3
