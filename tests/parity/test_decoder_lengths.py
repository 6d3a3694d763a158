"""What decoders of both wings refuse: lengths that no prompt has, and not one token for each sequence."""

import numpy as np
import pytest
from cases import small

import palm
from palm import ConfigError, TokenError, jax_impl, torch_impl

WINGS = {"torch": torch_impl, "jax": jax_impl}
PROMPTS = np.array([[1, 2, 0], [1, 2, 3]])


@pytest.fixture(scope="module", params=WINGS)
def make(request):
    model = palm.build(small(depth=1), backend=request.param)
    return lambda lengths, prompts=PROMPTS: WINGS[request.param].Decoder(model, prompts, np.array(lengths), 8)


@pytest.mark.parametrize("lengths", [[0, 3], [2, 4], [-1, 1], [2], [2, 3, 1], [[2, 3]]])
def test_lengths_are_from_one_to_the_width_of_the_prompts_and_one_for_each(make, lengths):
    with pytest.raises(
        ConfigError, match=r"lengths must be one number from 1 to 3 for each of 2 prompts; got"
    ):
        make(lengths)


def test_prompts_have_two_dimensions(make):
    with pytest.raises(TokenError, match=r"prompts must have shape \(b, p\)"):
        make([3], np.array([1, 2, 3]))


@pytest.mark.parametrize("tokens", [[1], [[1], [2]], [1, 2, 3]])
def test_one_token_is_fed_to_each_sequence(make, tokens):
    decoder = make([2, 3])
    for _ in range(9):  # what is refused takes no room
        with pytest.raises(TokenError, match=r"tokens must have shape \(b,\) = \(2,\)"):
            decoder.feed(np.array(tokens))
    decoder.feed(np.array([1, 2]))
    assert np.isfinite(np.array(decoder.logits.tolist())).all()
