"""The loss of many logits, formed a part at a time, against the same loss of all of them at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import palm
from palm import jax_impl, torch_impl
from palm.spec.rounding import rms

WINGS = {"torch": torch_impl, "jax": jax_impl}
ROWS, WIDTH, VOCABULARY = 13, 6, 29
SETTINGS = {"scale": 0.7, "z_loss": 0.3}


def arrays(dtype):
    rng = np.random.default_rng(0)
    features, weight = rng.standard_normal((1, ROWS, WIDTH)), rng.standard_normal((VOCABULARY, WIDTH))
    return features.astype(dtype), weight.astype(dtype), rng.integers(0, VOCABULARY, (1, ROWS))


def value_and_gradients(wing, dtype="float64"):
    features, weight, targets = arrays(dtype)
    if wing == "torch":
        y, w = (torch.from_numpy(x).requires_grad_() for x in (features, weight))
        objective, loss = torch_impl.output_loss(y, w, torch.from_numpy(targets), **SETTINGS)
        assert not loss.requires_grad
        (2 * objective).backward()
        return [float(objective.detach()), float(loss), y.grad.numpy(), w.grad.numpy()]

    def doubled(y, w):
        objective, loss = jax_impl.output_loss(y, w.T, jnp.asarray(targets), **SETTINGS)
        return 2 * objective, loss

    gradients = jax.value_and_grad(doubled, (0, 1), has_aux=True)
    (objective, loss), grads = gradients(*map(jnp.asarray, (features, weight)))
    return [float(objective) / 2, float(loss), *map(np.asarray, grads)]


def worst(found, expected):
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(found, expected, strict=True)]
    return max(rms(a - b) / rms(b) for a, b in pairs)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("at_once", [1, 3, 5, 12, 13])
@pytest.mark.parametrize("wing", WINGS)
def test_parts_of_any_size_give_the_loss_and_gradients_of_the_whole(wing, at_once, monkeypatch):
    with jax.enable_x64(True):
        whole = value_and_gradients(wing)
        # One logit fewer than all of them: the parts are taken even where all rows fit in one.
        monkeypatch.setattr(WINGS[wing].loss, "MOST_LOGITS", min(at_once * VOCABULARY, ROWS * VOCABULARY - 1))
        jax.clear_caches()
        assert worst(value_and_gradients(wing), whole) <= 1e-14


@pytest.mark.parametrize("wing", WINGS)
def test_a_part_that_is_weighed_wrongly_is_noticed(wing, monkeypatch):
    """The control: what the test above would say if each part's mean counted the same."""
    with jax.enable_x64(True):
        whole = value_and_gradients(wing)
        monkeypatch.setitem(SETTINGS, "z_loss", 0.3001)
        assert worst(value_and_gradients(wing), whole) > 1e-6


def test_both_wings_agree_in_parts(monkeypatch):
    for wing in WINGS.values():
        monkeypatch.setattr(wing.loss, "MOST_LOGITS", 4 * VOCABULARY)
    with jax.enable_x64(True):
        assert worst(value_and_gradients("torch"), value_and_gradients("jax")) <= 1e-14


@pytest.mark.parametrize("wing", WINGS)
def test_no_array_of_all_logits_exists(wing, monkeypatch):
    """Of the largest array that is ever made; the whole at once is the control."""
    features, weight, targets = arrays("float32")

    def largest() -> int:
        if wing == "jax":

            def objective(y, w):
                return jax_impl.output_loss(y, w.T, jnp.asarray(targets), **SETTINGS)[0]

            jaxpr = jax.make_jaxpr(jax.grad(objective, (0, 1)))(features, weight)
            return max(_sizes(jaxpr.jaxpr))
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        sizes = []

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                out = func(*args, **(kwargs or {}))
                sizes.extend(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))
                return out

        y, w = (torch.from_numpy(x).requires_grad_() for x in (features, weight))
        with Watch():
            torch_impl.output_loss(y, w, torch.from_numpy(targets), **SETTINGS)[0].backward()
        return max(sizes)

    assert largest() >= ROWS * VOCABULARY
    monkeypatch.setattr(WINGS[wing].loss, "MOST_LOGITS", 3 * VOCABULARY)
    assert largest() < ROWS * VOCABULARY


def _sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars if hasattr(v.aval, "size"))
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _sizes(inner)


@pytest.mark.whole
@pytest.mark.parametrize("backend", WINGS)
def test_a_training_step_in_parts_is_the_step_of_the_whole(backend, monkeypatch):
    cfg = palm.preset("tiny", depth=1)
    recipe = palm.recipe("adamw", precision="float64", z_loss=0.1)
    windows = np.random.default_rng(0).integers(0, 256, (2, 17))
    with jax.enable_x64(True):
        weights = []
        for most in (1 << 25, 1000):
            monkeypatch.setattr(WINGS[backend].loss, "MOST_LOGITS", most)
            jax.clear_caches()
            trainer = WINGS[backend].Trainer(palm.build(cfg, backend=backend, dtype="float64"), recipe)
            trainer.step(windows, recipe.rates(1))
            weights.append(trainer.moments())
        jax.clear_caches()
    assert max(rms(weights[0][n] - weights[1][n]) / rms(weights[0][n]) for n in weights[0]) <= 1e-12
