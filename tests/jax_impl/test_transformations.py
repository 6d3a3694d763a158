"""A JAX model composes with JAX's own transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import palm
from palm.jax_impl import PaLM, next_token_loss


@pytest.fixture(scope="module")
def logits(model, tokens):
    return np.asarray(model(tokens))


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_jit_around_the_model_gives_the_same_logits(model, tokens, logits):
    assert_close(jax.jit(lambda model, tokens: model(tokens))(model, tokens), logits)


def test_vmap_over_sequences_gives_the_same_logits(model, tokens, logits):
    assert_close(jax.vmap(model)(tokens), logits)


def test_the_gradient_through_jit_and_checkpoint_is_palms(model, tokens):
    def loss(model, tokens):
        return next_token_loss(model(tokens), tokens)

    value, grads = jax.jit(jax.value_and_grad(jax.checkpoint(loss)))(model, tokens)
    expected_value, expected = palm.value_and_grad(model, tokens)
    assert float(value) == pytest.approx(expected_value, rel=1e-6)
    assert jax.tree.structure(grads) == jax.tree.structure(model)
    for name, gradient in palm.to_numpy(grads).items():
        assert_close(gradient, expected[name])


def test_shapes_are_known_without_computing(model, config):
    for batch in ((), (2,), (2, 3)):
        ids = jax.ShapeDtypeStruct((*batch, 7), jnp.uint8)
        logits = jax.eval_shape(model, ids)
        assert (logits.shape, logits.dtype) == ((*batch, 7, config.num_tokens), jnp.float32)


def test_the_loss_by_hand():
    logits = jnp.log(jnp.array([[1.0, 3.0], [2.0, 6.0], [0.5, 0.5]]))
    # 3/4 for the second token, 1/4 for the third; the last row predicts nothing.
    expected = -(np.log(0.75) + np.log(0.25)) / 2
    assert float(next_token_loss(logits, jnp.array([0, 1, 0]))) == pytest.approx(expected, rel=1e-6)


def test_the_loss_of_narrow_logits_is_formed_in_float32():
    loss = next_token_loss(jnp.zeros((3, 1000), jnp.bfloat16), jnp.array([1, 2, 3]))
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(np.log(1000), rel=1e-6)


def precisions(function, *arguments) -> set[object]:
    """The precision of every matrix product of a program, those in its branches and kernels too."""
    found = set()

    def walk(jaxpr) -> None:
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                found.add(equation.params["precision"])
            for value in jax.tree.leaves(list(equation.params.values())):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    walk(inner)

    walk(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


def forward(model, tokens):
    return model(tokens)


def gradient(model, tokens):
    return jax.grad(lambda model: next_token_loss(model(tokens), tokens))(model)


def on(path, model):
    """The model on a path that need not run here: its program can be formed all the same."""
    dtype = model.embedding.weight.dtype
    hollow = jax.eval_shape(lambda: PaLM(model.config, attention=path, dtype=dtype, key=jax.random.key(0)))
    return jax.tree.unflatten(jax.tree.structure(hollow), jax.tree.leaves(model))


@pytest.mark.parametrize("program", [forward, gradient])
@pytest.mark.parametrize("path", ["textbook", "blockwise", "splash", "pallas"])
def test_float32_products_are_never_left_to_an_accelerators_fewer_digits(path, program, model, tokens):
    highest = jax.lax.Precision.HIGHEST
    assert precisions(program, on(path, model), tokens) == {(highest, highest)}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("path", ["blockwise", "splash", "pallas"])
def test_bfloat16_products_are_not_slowed_down(path, config, tokens):
    found = precisions(gradient, on(path, palm.build(config, backend="jax", dtype="bfloat16")), tokens)
    assert None in found
    assert (jax.lax.Precision.HIGHEST,) * 2 not in found


def test_a_precision_the_user_chose_is_kept(model, tokens):
    with jax.default_matmul_precision("high"):
        high = jax.lax.Precision.HIGH
        assert precisions(gradient, model, tokens) == {(high, high)}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("path", ["splash", "pallas"])
def test_a_kernel_gets_a_precision_that_its_compiler_knows(path, config, model, tokens):
    default, high, highest = jax.lax.Precision
    half = on(path, palm.build(config, backend="jax", dtype="bfloat16"))
    with jax.default_matmul_precision("high"):
        assert precisions(gradient, on(path, model), tokens) == {(high, high), (highest, highest)}
        assert precisions(gradient, half, tokens) == {(high, high), (default, default)}
    with jax.default_matmul_precision("bfloat16"):
        assert precisions(gradient, on(path, model), tokens) == {(default, default)}
