"""Ids outside the vocabulary in decoding: refused where they are read, NaN where they are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import small

import palm
from palm import TokenError
from palm.jax_impl import Decoder
from palm.spec.sampling import Sampling

PROMPTS = np.array([[1, 2, 3], [4, 5, 6]])
LENGTHS = np.array([3, 3])
CONFIGS = [small(), small(positions="rotary", norm="layernorm", share_kv=False, tie_embeddings=False)]


@pytest.fixture(scope="module", params=CONFIGS, ids=["palm_pytorch", "the opposite"])
def model(request):
    return palm.build(request.param, backend="jax")


def decoder(model, prompts):
    return Decoder(model, prompts, LENGTHS, size=6)


@pytest.mark.parametrize("bad", [13, -1, 2**31 - 1, -(2**31)])
def test_an_id_that_is_not_read_makes_its_sequence_nan_and_no_other(model, bad):
    """The control is the other row, and the same row with an id that there is."""
    prompts = PROMPTS.copy()
    prompts[1, 1] = bad
    for ids, is_nan in ((PROMPTS, [False, False]), (prompts, [False, True])):
        logits = decoder(model, jnp.asarray(ids)).logits
        assert np.isnan(logits).all(-1).tolist() == is_nan
        assert np.isfinite(logits[0]).all()
    clamped = np.clip(prompts, 0, model.config.num_tokens - 1)
    assert np.isfinite(decoder(model, jnp.asarray(clamped)).logits).all()


@pytest.mark.parametrize("bad", [13, -1])
def test_a_fed_id_that_is_not_read_makes_all_that_follows_nan(model, bad):
    fed, right = decoder(model, PROMPTS), decoder(model, PROMPTS)
    fed.feed(jnp.array([7, bad]))
    right.feed(jnp.array([7, 8]))
    for _ in range(2):
        assert np.isnan(fed.logits[1]).all()
        assert np.isfinite(right.logits).all()
        assert np.array_equal(fed.logits[0], right.logits[0])
        tokens = jnp.array([9, 10])
        fed.feed(tokens), right.feed(tokens)


def test_decoding_and_the_forward_pass_say_the_same_of_such_ids(model):
    bad = jnp.array([[1, 2, 13], [4, 5, 6]])
    whole = jax.jit(lambda model, tokens: model(tokens))(model, bad)[:, -1]
    assert (
        np.isnan(whole).any(-1).tolist()
        == np.isnan(decoder(model, bad).logits).any(-1).tolist()
        == [True, False]
    )


def test_numpys_ids_are_read_and_refused(model):
    with pytest.raises(TokenError, match=r"\[0, 13\); got token=13"):
        decoder(model, np.where(PROMPTS == 5, 13, PROMPTS))
    fed = decoder(model, PROMPTS)
    for _ in range(4):  # what is refused takes no room
        with pytest.raises(TokenError, match="got token=-1"):
            fed.feed(np.array([7, -1]))
    fed.feed(np.array([7, 8]))
    assert np.isfinite(fed.logits).all()


def test_the_log_probability_of_what_follows_such_an_id_is_nan(model):
    bad = decoder(model, jnp.asarray(np.where(PROMPTS == 5, 13, PROMPTS)))
    _, logprobs = bad.next(None, Sampling(temperature=0))
    assert np.isnan(bad.fetch(logprobs)).tolist() == [False, True]
