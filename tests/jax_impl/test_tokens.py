"""What a JAX model accepts as tokens: called itself, through palm's doors, and inside jit."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_explains, small

import palm
from palm import TokenError
from palm.spec import forward

SHAPE = ["tokens must have shape (..., n) with at least one token", "Pass n ≥ 1"]
INTEGERS = ["tokens must be integers", "Cast them to an integer type"]
RANGE = ["tokens must lie in [0, num_tokens) = [0, 13)"]
BAD = {
    "empty": (np.zeros(0, np.int32), SHAPE),
    "no sequences": (np.zeros((0, 3), np.int32), SHAPE),
    "empty sequences": (np.zeros((2, 0), np.int32), SHAPE),
    "a single number": (np.array(3), SHAPE),
    "floats": (np.array([1.0, 2.0], np.float32), INTEGERS),
    "bools": (np.array([True, False]), INTEGERS),
    "complex": (np.array([1j], np.complex64), INTEGERS),
    "negative": (np.array([0, -1, 2]), [*RANGE, "token=-1", "Check the tokenizer"]),
    "too large": (np.array([[0, 1], [13, 2]]), [*RANGE, "token=13", "Check the tokenizer"]),
}
DOORS = {
    "the model": lambda model, tokens: model(tokens),
    "its taps": lambda model, tokens: model.activations(tokens),
    "palm.activations": palm.activations,
    "palm.value_and_grad": palm.value_and_grad,
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_bad_tokens_are_refused_alike_at_every_door(model, what, door, kind):
    tokens, parts = BAD[what]
    with pytest.raises(TokenError) as raised:
        DOORS[door](model, kind(tokens))
    assert_explains(raised, *parts)


@pytest.mark.parametrize("tokens", [[1, 2], (1, 2), 3, None, "12"])
def test_a_model_itself_takes_arrays_only(model, tokens):
    for door in ("the model", "its taps"):
        with pytest.raises(TokenError) as raised:
            DOORS[door](model, tokens)
        name = type(tokens).__name__
        assert_explains(raised, "tokens must be a jax.Array", f"got {name}", "Use jnp.asarray")


@pytest.mark.parametrize("what", ["empty sequences", "a single number", "floats", "bools"])
def test_what_can_be_seen_while_tracing_is_refused_there_too(model, what):
    tokens, parts = BAD[what]
    with pytest.raises(TokenError) as raised:
        jax.eval_shape(model, tokens)
    assert_explains(raised, *parts)


CLOSED = {
    "jax.jit": lambda model, ids: jax.jit(lambda model: model(ids))(model),
    "eqx.filter_jit": lambda model, ids: eqx.filter_jit(lambda: model(ids))(),
    "taps": lambda model, ids: eqx.filter_jit(lambda model: model.activations(ids))(model)["logits"],
}


@pytest.mark.parametrize("how", CLOSED)
def test_ids_that_a_jit_closes_over_are_read(model, tokens, how):
    np.testing.assert_allclose(CLOSED[how](model, tokens), model(tokens), rtol=1e-4, atol=1e-6)
    with pytest.raises(TokenError, match="got token=13"):
        CLOSED[how](model, jnp.array([1, 13]))


def test_ids_outside_the_vocabulary_give_nan_inside_jit_and_touch_no_other_sequence(model, config):
    last = config.num_tokens - 1
    tokens = jnp.array([[0, 1, last], [0, 1, last + 1], [-1, 1, last], [0, 2**31 - 1, 1], [0, -(2**31), 1]])
    logits = jax.jit(lambda model, tokens: model(tokens))(model, tokens)
    assert jnp.isfinite(logits[0]).all()
    assert jnp.isnan(logits[1:]).all(-1).any(-1).all()
    # At the bad id itself, and wherever it is attended to.
    for row, place in ((1, 2), (2, 0), (3, 1), (4, 1)):
        assert jnp.isnan(logits[row, place:]).all()


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_narrow_ids_find_their_row_in_a_vocabulary_they_cannot_count(dtype):
    config = small(num_tokens=300, depth=1)
    tokens = np.array([0, 1, 126, np.iinfo(dtype).max], dtype)
    model = palm.build(config, backend="jax")
    exact = forward.activations(config, palm.to_numpy(model), tokens)["logits"]
    np.testing.assert_allclose(model(jnp.asarray(tokens)), exact, rtol=1e-4, atol=1e-5)


def test_numpys_int64_needs_no_cast(model, tokens):
    assert np.array_equal(model(np.asarray(tokens, np.int64)), model(tokens))


def test_palms_doors_take_lists(model, tokens):
    taps = palm.activations(model, tokens.tolist())
    np.testing.assert_allclose(taps["logits"], model(tokens), rtol=1e-4, atol=1e-6)
    assert palm.value_and_grad(model, tokens.tolist())[0] == palm.value_and_grad(model, tokens)[0]


def test_a_loss_needs_a_next_token(model):
    with pytest.raises(TokenError) as raised:
        palm.value_and_grad(model, jnp.array([[1], [2]]))
    assert_explains(raised, "tokens must have n ≥ 2", "n=1", "Pass longer")
