"""Faults of the backward pass alone: the forward pass is right, the gradient nearest to the loss is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from cases import draw_tokens, small

import palm
from palm import jax_impl, torch_impl
from palm.spec.taps import untapped
from palm.torch_impl.linear import Linear

CONFIG = small(depth=3, heads=2, dim_head=6, dim=12)
TOKENS = draw_tokens(CONFIG, 2, 12)


def models(dtype="float32"):
    t = palm.build(CONFIG, backend="torch", seed=3, dtype=dtype)
    return t, palm.convert(t, backend="jax")


def sentence(found):
    assert found.outcome == "differ", found.verdict
    assert all(finding.fault is None for finding in found.findings if finding.kind != "gradient")
    return [(one.side, one.taps, one.cause) for one in found.diagnoses]


@pytest.mark.whole
def test_a_right_backward_pass_has_no_diagnosis():
    assert palm.compare(*models(), TOKENS).diagnoses == ()


@pytest.mark.whole
def test_a_detached_key_is_found_in_its_block():
    t, j = models()
    layer = t.blocks[1].attention.key_value
    layer.register_forward_hook(lambda module, inputs, output: output.detach())
    found = palm.compare(t, j, TOKENS)
    name = "grad:blocks.1.attention.key_value"
    assert sentence(found) == [("torch", (name,), "gradient missing")]
    assert found.first_divergence == "grad:blocks.1.attention.key_value"


class Tripled(torch.autograd.Function):
    """The same tensor; three times its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient


class LoudLinear(Linear):
    """Its weight's gradient is three times what it is."""

    def forward(self, x):
        return torch.nn.functional.linear(x, Tripled.apply(self.weight))


def test_a_gradient_scaled_on_its_way_back_is_found_in_its_block():
    t, j = models()
    t.blocks[2].feedforward.down.__class__ = LoudLinear
    found = palm.compare(t, j, TOKENS)
    name = "grad:blocks.2.feedforward.down"
    assert sentence(found) == [("torch", (name,), "gradient scale")]
    assert "the gradient is 3× its correct value" in found.diagnoses[0].sentence


def test_a_summed_loss_scales_all_gradients(monkeypatch):
    """The loss is right, as a number that is divided afterwards."""
    right = jax_impl.probe.value_and_grad

    def summed(model, tokens, **mode):
        loss, grads = right(model, tokens, **mode)
        return loss, {name: gradient * 22 for name, gradient in grads.items()}

    monkeypatch.setattr(jax_impl, "value_and_grad", summed)
    found = palm.compare(*models(), TOKENS)
    ((side, taps, cause),) = sentence(found)
    assert (side, cause) == ("jax", "gradient scale")
    assert len(taps) == len(palm.spec.parameters.parameters(found.recordings[0].config))
    assert "all gradients are 22× their correct value" in found.diagnoses[0].sentence


@pytest.mark.parametrize("use", ["the token lookup", "the output layer"])
def test_a_tied_embedding_whose_gradient_lacks_one_use_is_named(monkeypatch, use):
    def forward(self, tokens, remat=False, tap=untapped):
        weight = self.embedding.weight
        looked_up, out = (weight.detach(), weight) if use == "the output layer" else (weight, weight.detach())
        x = tap("embed", looked_up[tokens])
        rotation, slopes = self.positions(tokens.shape[-1], x)
        for i, block in enumerate(self.blocks):
            x = block(x, rotation, slopes, tap=lambda name, value, i=i: tap(f"blocks.{i}.{name}", value))
        return tap("logits", tap("norm", self.norm(x)) @ out.T * self.config.logit_scale)

    monkeypatch.setattr(torch_impl.PaLM, "forward", forward)
    found = palm.compare(*models(), TOKENS)
    assert sentence(found) == [("torch", ("grad:embedding",), "gradient of one use")]
    assert f"only that of {use}" in found.diagnoses[0].detail


@pytest.mark.whole
def test_a_jax_fault_of_a_custom_backward_is_found_nearest_to_the_loss(monkeypatch):
    @jax.custom_vjp
    def swiglu(gate, up):
        return jax.nn.silu(gate) * up

    def forward(gate, up):
        return swiglu(gate, up), (gate, up)

    def backward(saved, cotangent):
        gate, up = saved
        return cotangent * up * jax.nn.sigmoid(gate), cotangent * jax.nn.silu(gate)  # the slope is not that

    swiglu.defvjp(forward, backward)
    monkeypatch.setattr(jax_impl.feedforward, "swiglu", swiglu)
    jax.clear_caches()
    found = palm.compare(*models(), TOKENS)
    told = sentence(found)
    jax.clear_caches()
    assert [(side, cause) for side, _, cause in told] == [("jax", "unknown")]
    assert "grad:blocks.2.feedforward.gate" in told[0][1]
    assert all(tap.startswith("grad:blocks.2.") for tap in told[0][1])
    assert jnp.isfinite(found.losses[1])
    assert np.isfinite(found.kl_divergence)


def test_a_fault_of_the_forward_pass_has_no_second_name_for_its_gradients():
    t, j = models()
    with torch.no_grad():
        t.blocks[1].norm.weight.mul_(1.01)
    found = palm.compare(t, j, TOKENS)
    assert not any(tap.startswith("grad:") for one in found.diagnoses for tap in one.taps)
