"""Training steps: torch.optim.AdamW against optax's and palm's own, as they are and with one mistake each."""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import steps
import torch

import palm
from palm.recipes import Rates

# What is changed on the JAX side, and what a line says that computes it: PyTorch's, optax's or the port's.
MISTAKES = {
    "eps": "add_(eps",
    "eps inside": "exp_avg_sq.sqrt()",
    "no bias correction": "bias_correction",
    "norms decayed": "g + s * p",
    "rate of the next step": "1 - lr * weight_decay",
    "beta2": "exp_avg_sq.mul_(beta2)",
    "clip": "# the clip",
    "L2": "g + s * p",
}
# The others take up to 45 s each.
ALWAYS = ("clip",)
CASES = [m if m in ALWAYS else pytest.param(m, marks=pytest.mark.whole) for m in MISTAKES]


def chained(*first: Any, **adam: Any) -> Any:
    own = {"b1": steps.BETAS[0], "b2": steps.BETAS[1], "eps": steps.EPS}
    return optax.chain(
        *first, optax.scale_by_adam(**{**own, **adam}), optax.scale_by_learning_rate(steps.rate)
    )


def mistaken(name: str) -> tuple[Any, Any]:
    """An optimizer of optax's and a way to clip, with one mistake."""
    decayed, right = optax.add_decayed_weights(steps.DECAY, steps.matrices), steps.adamw()
    return {
        "eps": (steps.adamw(eps=1e-6), steps.clipped),
        "eps inside": (steps.adamw(eps=0.0, eps_root=steps.EPS), steps.clipped),
        "norms decayed": (steps.adamw(mask=None), steps.clipped),
        "rate of the next step": (steps.adamw(learning_rate=lambda k: steps.rate(k + 1)), steps.clipped),
        "beta2": (steps.adamw(b2=0.99), steps.clipped),
        "clip": (right, lambda grads: steps.clipped(grads, 0.0)),
        "L2": (chained(decayed), steps.clipped),
    }[name]


def test_a_step_of_torch_and_one_of_optax_agree():
    held = steps.Torch()
    found = palm.compare(held.program(), steps.optax_step(steps.adamw(), held), *steps.BATCH)
    assert found.outcome == "agree", found.verdict
    assert found.distance < 1e-13
    assert min(found.aligned) == 1


@pytest.mark.parametrize("kind", ["foreach", "fused"])
def test_kernels_that_update_many_parameters_at_once_agree_too(kind):
    one, many = steps.Torch(), steps.Torch(**{kind: True})
    found = palm.compare(one.program(), many.program(), *steps.BATCH)
    assert found.outcome == "agree", found.verdict


@pytest.mark.parametrize("mistake", CASES)
def test_a_mistake_is_found_on_the_line_of_its_operation(mistake):
    held = steps.Torch()
    if mistake == "no bias correction":
        program = palm_step(held, uncorrected)
    else:
        optimizer, clip = mistaken(mistake)
        program = steps.optax_step(optimizer, held, clip)
    found = palm.compare(held.program(), program, *steps.BATCH)
    assert found.outcome == "differ"
    first = found.divergences[0]
    assert MISTAKES[mistake] in "".join(x.source for x in (first.a, first.b) if x is not None), first


def uncorrected(p: Any, g: Any, m: Any, s: Any, rates: Rates, eps: float) -> Any:
    """AdamW without the bias correction of the second moment."""
    m = rates.beta1 * m + rates.rest1 * g
    s = rates.beta2 * s + rates.rest2 * jnp.square(g)
    decay = rates.decay * p if p.ndim > 1 else 0.0
    return rates.lr * (m / rates.correction1) / (jnp.sqrt(s) + eps) + decay, m, s


def rates_of(step: int) -> Rates:
    b1, b2 = steps.BETAS
    k = step + 1
    return Rates(
        steps.rate(step), steps.rate(step) * steps.DECAY, b1, 1 - b1, b2, 1 - b2, 1 - b1**k, 1 - b2**k
    )


def palm_step(held: steps.Torch, update: Any) -> Any:
    """The next step with one of the JAX wing's updates."""
    params = {name: jnp.asarray(p.detach().numpy()) for name, p in held.net.named_parameters()}
    first, second = ({n: jnp.asarray(x) for n, x in held.state(s).items()} for s in ("exp_avg", "exp_avg_sq"))

    def jax_step(ids: Any, targets: Any) -> dict[str, Any]:
        loss, grads = jax.value_and_grad(steps.loss_of)(params, ids, targets)
        grads, norm = steps.clipped(grads)
        new = {
            name: p - update(p, grads[name], first[name], second[name], rates_of(steps.EARLIER), steps.EPS)[0]
            for name, p in params.items()
        }
        return {"loss": loss, "norm": norm, **new}

    return jax_step


def torch_palm_step(held: steps.Torch) -> Any:
    """The next step with the torch wing's own update."""
    from palm.torch_impl.optimizer import adamw

    moments = {n: held.optimizer.state[p] for n, p in held.net.named_parameters()}

    def torch_step(ids: Any, targets: Any) -> dict[str, Any]:
        named = dict(held.net.named_parameters())
        loss = torch.nn.functional.cross_entropy(held.net(ids).flatten(0, 1), targets.flatten())
        grads = list(torch.autograd.grad(loss, list(named.values())))
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
        factor = torch.clamp(steps.CLIP / (norm + 1e-6), max=1.0)
        new = {}
        for (name, p), g in zip(named.items(), grads, strict=True):
            m, s = (moments[name][key].clone() for key in ("exp_avg", "exp_avg_sq"))
            new[name] = p - adamw(p, g * factor, m, s, rates_of(steps.EARLIER), steps.EPS)[0]
        return {"loss": loss, "norm": norm, **new}

    return torch_step


@pytest.mark.parametrize("wing", ["torch", "jax"])
def test_the_update_of_each_wing_agrees_with_torch(wing):
    from palm.jax_impl.optimizer import adamw

    held = steps.Torch()
    own = torch_palm_step(held) if wing == "torch" else palm_step(held, adamw)
    found = palm.compare(held.program(), own, *steps.BATCH)
    assert found.outcome == "agree", found.verdict


def test_a_step_leaves_everything_as_it_was():
    held = steps.Torch()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(held.optimizer, 0.5)
    counted = {"calls": 0}
    for p in held.net.parameters():
        assert p.grad is not None

    def torch_step(ids: Any, targets: Any) -> Any:
        found = held.step(steps.EARLIER, ids, targets)
        scheduler.step()
        return found

    def everything() -> Any:
        state = copy.deepcopy(held.optimizer.state_dict())
        grads = {n: p.grad.clone() for n, p in held.net.named_parameters()}
        values = {n: p.detach().clone() for n, p in held.net.named_parameters()}
        return state, grads, values, scheduler.state_dict(), torch.get_rng_state(), held.net.training

    before, objects = everything(), [(p, p.grad) for p in held.net.parameters()]
    palm.trace(torch_step, *steps.BATCH)
    after = everything()
    same = jax.tree.map(
        lambda x, y: bool(np.array_equal(x, y)) and getattr(x, "dtype", 0) == getattr(y, "dtype", 0),
        _plain(before),
        _plain(after),
    )
    assert all(jax.tree.leaves(same)), same
    assert all(p is q and p.grad is g for (p, g), q in zip(objects, held.net.parameters(), strict=True))
    assert counted == {"calls": 0}


def _plain(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.numpy() if isinstance(x, torch.Tensor) else x, tree)
