"""The referee's gradients, against the derivative of the referee's own forward pass.

A complex step gives that derivative without subtracting anything: f(w + i·h·u) = f(w) + i·h·∂f/∂u + O(h²),
and with h = 1e-30 the rest is nothing. So the bar can be near float64 itself.
"""

import dataclasses
import math

import numpy as np
import pytest
from cases import ARCHITECTURES, architecture_id, draw_tokens, draw_weights, small

from palm import PaLMConfig, TokenError
from palm.spec import forward
from palm.spec.backward import value_and_grad

STEP = 1e-30
Weights = dict[str, np.ndarray]
every_architecture = pytest.mark.parametrize("choices", ARCHITECTURES, ids=architecture_id)


def loss(config: PaLMConfig, weights: Weights, tokens: np.ndarray) -> complex:
    """The training loss by the referee's own steps, without its checks: they allow no complex weights."""
    logits = forward.run(config, weights, tokens)["logits"]
    exponentials = np.exp(logits[..., :-1, :])
    hit = np.take_along_axis(logits[..., :-1, :], tokens[..., 1:, None], -1)[..., 0]
    return (np.log(exponentials.sum(-1)) - hit).mean()


def slope(config: PaLMConfig, weights: Weights, tokens: np.ndarray, name: str, along: np.ndarray) -> float:
    """The derivative of the loss as one weight moves along one direction."""
    return loss(config, {**weights, name: weights[name] + 1j * STEP * along}, tokens).imag / STEP


def assert_gradients(config: PaLMConfig, weights: Weights, tokens: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    value, grads = value_and_grad(config, weights, tokens)
    assert value == pytest.approx(loss(config, weights, tokens).real, rel=1e-13)
    assert list(grads) == list(weights)
    for name, gradient in grads.items():
        assert gradient.shape == weights[name].shape
        for _ in range(2):
            along = rng.standard_normal(gradient.shape)
            expected = slope(config, weights, tokens, name, along)
            # Relative to what the product could be: a direction may happen to be nearly orthogonal.
            scale = np.linalg.norm(gradient) * np.linalg.norm(along)
            assert scale > 0
            assert abs((gradient * along).sum() - expected) <= 1e-11 * scale, name


@every_architecture
def test_every_gradient_is_the_derivative_of_the_forward_pass(choices):
    config = small(**choices)
    assert_gradients(config, draw_weights(config), draw_tokens(config, 2, 5))


@every_architecture
def test_every_gradient_is_right_where_eps_matters(choices):
    """An eps amid the rows' own scale: "clamp" holds some rows and lets others move."""
    config = small(**choices)
    weights, tokens = draw_weights(config, seed=3), draw_tokens(config, 2, 6)
    x = forward.activations(config, weights, tokens)["embed"]
    if config.norm == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    root = float(np.median(np.sqrt((x**2).mean(-1))))
    eps = root if config.norm_eps_mode == "clamp" else root**2
    assert_gradients(dataclasses.replace(config, norm_eps=eps), weights, tokens)


def test_central_differences_agree_too():
    """The complex step runs the same lines of the referee; this does not rely on how they take it."""
    config = small(positions="rotary", norm="layernorm", share_kv=False, tie_embeddings=False)
    weights, tokens = draw_weights(config), draw_tokens(config, 2, 5)
    rng, h = np.random.default_rng(0), 1e-5
    _, grads = value_and_grad(config, weights, tokens)
    along = {name: rng.standard_normal(array.shape) for name, array in weights.items()}
    above, below = (
        value_and_grad(config, {n: w + sign * h * along[n] for n, w in weights.items()}, tokens)[0]
        for sign in (1, -1)
    )
    expected = sum((grads[name] * along[name]).sum() for name in weights)
    assert (above - below) / (2 * h) == pytest.approx(expected, rel=1e-7)


@every_architecture
def test_the_gradient_of_a_batch_is_the_mean_of_those_of_its_rows(choices):
    config = small(**choices)
    weights, tokens = draw_weights(config), draw_tokens(config, 2, 2, 4)
    together = value_and_grad(config, weights, tokens)
    alone = [value_and_grad(config, weights, row) for row in tokens.reshape(4, 4)]
    assert together[0] == pytest.approx(np.mean([value for value, _ in alone]), rel=1e-13)
    for name, gradient in together[1].items():
        mean = np.mean([grads[name] for _, grads in alone], axis=0)
        np.testing.assert_allclose(gradient, mean, rtol=1e-9, atol=1e-13 * np.abs(mean).max())


def test_an_embedding_of_zeros_knows_nothing_of_the_next_token():
    config = small()
    weights = {**draw_weights(config), "embedding": np.zeros((config.num_tokens, config.dim))}
    value, grads = value_and_grad(config, weights, draw_tokens(config, 4))
    assert value == pytest.approx(math.log(config.num_tokens), rel=1e-15)
    assert all(np.isfinite(gradient).all() for gradient in grads.values())


def test_an_untied_embedding_gets_a_gradient_only_for_tokens_that_occur():
    config = small(tie_embeddings=False)
    _, grads = value_and_grad(config, draw_weights(config), np.array([3, 5, 3, 1]))
    # The last token is only predicted, never read.
    assert np.flatnonzero(np.abs(grads["embedding"]).max(-1)).tolist() == [3, 5]


def test_the_gradient_of_the_logits_sums_to_zero_and_skips_the_last_position():
    from palm.spec.backward import cross_entropy

    logits = np.random.default_rng(0).standard_normal((2, 4, 7))
    _, d_logits = cross_entropy(logits, np.array([[2, 3, 4], [5, 0, 0]]))
    np.testing.assert_allclose(d_logits.sum(-1), 0, atol=1e-16)
    assert not d_logits[:, -1].any()
    assert (np.sign(d_logits[0, 0]) == [1, 1, -1, 1, 1, 1, 1]).all()


def test_a_loss_needs_two_tokens():
    with pytest.raises(TokenError, match="n ≥ 2"):
        value_and_grad(small(), draw_weights(small()), np.array([[1], [2]]))
