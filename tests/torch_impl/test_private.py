"""Each private part of PyTorch has a public way beside it, which gives the same to rounding."""

from __future__ import annotations

import sys

import pytest
import torch
from cases import draw_tokens, draw_weights, small
from torch import nn

import palm
from palm.spec.rounding import RATIO_BAR, rms, rounding_ratio
from palm.torch_impl import private

WIDE = {"num_tokens": 61, "dim": 32, "dim_head": 8}
# Where PyTorch keeps them, under the names it could change.
PARTS = {
    "softmax": (torch, "_softmax_backward_data"),
    "transforms": (torch._C, "_are_functorch_transforms_active"),
    "onednn": (torch.ops.mkldnn, "_linear_pointwise"),
    "int8": (torch, "_weight_int8pack_mm"),
    "adamw": (sys.modules[torch.optim.AdamW.__module__], "adamw"),
}


def without(monkeypatch: pytest.MonkeyPatch, part: str) -> list[str]:
    """Take one part away; the list holds the names that were asked for and not found."""
    asked: list[str] = []
    found = private._found

    def missing(place: object, name: str) -> object:
        if (place, name) == PARTS[part]:
            asked.append(name)
            return None
        return found(place, name)

    monkeypatch.setattr(private, "_found", missing)
    return asked


def gradients(dtype: str, positions: str = "alibi") -> dict[str, object]:
    config = small(positions=positions, **WIDE)
    weights = draw_weights(config, dtype="float32")
    model = palm.from_numpy(config, weights, backend="torch", dtype=dtype)
    loss, grads = palm.value_and_grad(model, draw_tokens(config, 2, 40))
    return {"loss": loss, **grads}


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_there_in_this_version(part):
    place, name = PARTS[part]
    assert private._found(place, name) is not None
    assert private._found(place, name + "_of_another_version") is None


@pytest.mark.parametrize("part", ["softmax", "transforms", "onednn"])
def test_gradients_without_a_part_are_the_same_to_rounding(monkeypatch, part):
    with_it, exact = gradients("float32"), gradients("float64")
    asked = without(monkeypatch, part)
    public, public_exact = gradients("float32"), gradients("float64")
    assert asked
    for name, grad in public.items():
        own = rms(with_it[name] - exact[name]), rms(grad - public_exact[name])
        assert rms(public_exact[name] - exact[name]) <= 1e-13 * rms(exact[name])
        assert rounding_ratio(rms(grad - with_it[name]), *own) <= RATIO_BAR, name


def test_the_gradient_of_softmax_by_hand(monkeypatch):
    scores = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grad = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = scores.softmax(-1).requires_grad_(False)
    expected = torch.func.vjp(lambda x: x.softmax(-1), scores)[1](grad)[0]
    fused = private.softmax_backward(grad, weights)
    without(monkeypatch, "softmax")
    public = private.softmax_backward(grad, weights)
    torch.testing.assert_close(fused, expected, rtol=1e-14, atol=1e-16)
    torch.testing.assert_close(public, expected, rtol=1e-14, atol=1e-16)
    assert not torch.allclose(weights * grad, expected)


def test_int8_products_without_the_part_are_the_same_to_rounding(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    x, scale = torch.randn(3, 64, generator=draw), torch.rand(33, generator=draw) + 0.5
    values = torch.randint(-127, 128, (33, 64), dtype=torch.int8, generator=draw)
    exact = (x.double() @ (values.double() * scale.double()[:, None]).t()).numpy()
    fused = private.int8_matmul(x, values, scale).numpy()
    assert without(monkeypatch, "int8") == []
    public = private.int8_matmul(x, values, scale).numpy()
    assert rounding_ratio(rms(fused - public), rms(fused - exact), rms(public - exact)) <= RATIO_BAR
    assert rms(public - exact) < 1e-6 * rms(exact)
    assert rms(private.int8_matmul(x, values, scale * 1.001).numpy() - exact) > 1e-4 * rms(exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_of_adamw_without_the_part_is_the_same_to_rounding(monkeypatch, dtype):
    draw = torch.Generator().manual_seed(0)
    starts = [torch.rand(7, 33, generator=draw, dtype=torch.float64).to(dtype) for _ in range(4)]
    options = {"beta1": 0.9, "beta2": 0.99, "rate": 0.25, "eps": 1e-3}

    def stepped(x, g, m, s):
        x, m, s = x.clone(), m.clone(), s.clone()
        private.adamw_step(x, g, m, s, **options)
        return [t.double().numpy() for t in (x, m, s)]

    x, g, m, s = (t.double().numpy() for t in starts)
    m, s = 0.9 * m + 0.1 * g, 0.99 * s + 0.01 * g**2
    exact = x + 0.25 * m / (s**0.5 + 1e-3), m, s
    fused = stepped(*starts)
    asked = without(monkeypatch, "adamw")
    public = stepped(*starts)
    assert asked
    epsilon = torch.finfo(dtype).eps
    for found in (fused, public):
        assert all(rms(a - b) <= 4 * epsilon * rms(b) for a, b in zip(found, exact, strict=True))
    assert rms(fused[0] - x) > 0.1 * rms(x)


def test_what_torch_compile_wraps_is_known():
    model = nn.Linear(2, 2)
    assert private.compiled_module(torch.compile(model, backend="eager")) is model
    assert private.compiled_module(nn.Sequential(model)) is None


def test_transforms_are_seen_and_where_they_cannot_be_they_are_supposed(monkeypatch):
    seen = []

    def function(x):
        seen.append(private.transformed())
        return x

    torch.vmap(function)(torch.ones(2))
    function(torch.ones(2))
    assert seen == [True, False]
    without(monkeypatch, "transforms")
    assert private.transformed()


@pytest.mark.parametrize(
    "register",
    ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"],
)
def test_hooks_are_seen(register):
    module = nn.Linear(2, 2)
    assert list(private.hooks_of(module)) == []
    handle = getattr(module, register)(print)
    assert list(private.hooks_of(module)) == [print]
    handle.remove()
    assert list(private.hooks_of(module)) == []


@pytest.mark.parametrize(
    "register",
    [
        "register_module_forward_hook",
        "register_module_forward_pre_hook",
        "register_module_full_backward_hook",
    ],
)
def test_hooks_of_all_modules_are_seen(register):
    assert list(private.hooks_of_all_modules()) == []
    handle = getattr(nn.modules.module, register)(print)
    assert list(private.hooks_of_all_modules()) == [print]
    handle.remove()
