"""How often and how much is compiled: once, and no more for a deeper model."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import palm
from palm import jax_impl
from palm.jax_impl.model import UNROLLED


@pytest.fixture
def compilations(caplog):
    """Counts what JAX compiles while something is called."""

    def count(call) -> int:
        caplog.clear()
        with jax.log_compiles(True), caplog.at_level(logging.WARNING):
            call()
        return sum("Finished XLA compilation" in record.getMessage() for record in caplog.records)

    return count


def test_a_second_call_compiles_nothing(model, config, tokens, compilations):
    model(tokens)
    others = (tokens + 1) % config.num_tokens
    assert compilations(lambda: model(tokens)) == 0
    assert compilations(lambda: model(others)) == 0


def test_another_model_of_the_same_config_compiles_nothing(model, config, tokens, compilations):
    model(tokens)
    other = palm.build(config, backend="jax", seed=9)
    assert compilations(lambda: other(tokens)) == 0


@pytest.mark.sampled(1)
@pytest.mark.parametrize("device", [None, "cpu"])
def test_training_compiles_one_step_also_when_it_is_resumed(config, compilations, device):
    """Weights and moments read from a checkpoint are placed as those that a step gives back."""
    recipe = palm.recipe("bytes", steps=4, batch=1, length=5)
    windows = np.arange(6)[None] % config.num_tokens
    trainer = jax_impl.Trainer(palm.build(config, backend="jax", device=device), recipe)
    trainer.step(windows, recipe.rates(1))
    assert compilations(lambda: trainer.step(windows, recipe.rates(2))) == 0
    _, attention = trainer.placement
    weights = palm.to_numpy(trainer.model)
    model = palm.from_numpy(config, weights, backend="jax", device=device, attention=attention)
    resumed = jax_impl.Trainer(model, recipe)
    resumed.set_moments(trainer.moments())
    assert compilations(lambda: resumed.step(windows, recipe.rates(3))) == 0
    assert compilations(lambda: resumed.step(windows, recipe.rates(4))) == 0


@pytest.mark.parametrize("is_ahead", [True, False])
def test_what_is_compiled_ahead_is_not_compiled_again(model, config, compilations, is_ahead):
    """Not compiled ahead, the same calls compile both programs: the control of the count."""
    ids = (np.arange(2 * (23 + is_ahead)) % config.num_tokens).reshape(2, -1)
    if is_ahead:
        with jax_impl.ahead(model, ids):
            pass
    with jax_impl.widened(model) as wide:
        found = compilations(lambda: (jax_impl.activations(wide, ids), jax_impl.value_and_grad(wide, ids)))
    assert found == 0 if is_ahead else found >= 2


def test_another_length_is_compiled_and_would_be_counted(model, tokens, compilations):
    """The twin of the tests above: the same count with another answer."""
    shorter = tokens[:, :3]
    assert compilations(lambda: model(shorter)) >= 1
    assert compilations(lambda: model(shorter)) == 0


def count_equations(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        total += 1
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += count_equations(inner)
    return total


@pytest.mark.parametrize("what", ["forward", "gradient"])
def test_the_program_of_deep_models_does_not_grow_with_depth(config, what):
    def program(model, tokens):
        return model(tokens).sum()

    sizes = []
    for depth in (UNROLLED + 1, UNROLLED + 2, 3 * UNROLLED):
        model = palm.build(dataclasses.replace(config, depth=depth), backend="jax")
        traced = jax.make_jaxpr(jax.grad(program) if what == "gradient" else program)
        sizes.append(count_equations(traced(model, jnp.array([1, 2, 3])).jaxpr))
    assert sizes[0] > 50
    assert len(set(sizes)) == 1


def test_derived_tables_are_no_arguments_of_the_program(model, config):
    """Only parameters and tokens go in: cos, sin and masks are formed or folded while tracing."""
    traced = jax.make_jaxpr(lambda model, tokens: model(tokens))(model, jnp.array([1, 2, 3]))
    assert len(traced.jaxpr.invars) == len(jax.tree.leaves(model)) + 1
