"""The JAX wing in float64 against the referee, without torch.

Two architectures that share no choice: each compiles for seconds, and the parity tests take all of them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import draw_tokens, draw_weights, small

import palm
from palm.jax_impl import Norm
from palm.spec import backward, forward

CONFIGS = [
    small(),
    small(
        positions="rotary",
        norm="layernorm",
        norm_eps_mode="add",
        share_kv=False,
        tie_embeddings=False,
        init="reference",
    ),
]


@pytest.fixture(scope="module", params=CONFIGS, ids=["palm_pytorch", "the opposite"])
def case(request):
    """(model, config, weights, tokens), in float64."""
    weights, tokens = draw_weights(request.param), draw_tokens(request.param, 2, 7)
    with jax.enable_x64(True):
        return palm.from_numpy(request.param, weights, backend="jax"), request.param, weights, tokens


def assert_close(actual: np.ndarray, exact: np.ndarray, name: str) -> None:
    assert (actual.shape, actual.dtype) == (exact.shape, np.float64), name
    assert np.abs(actual - exact).max() <= 1e-13 * max(1.0, np.abs(exact).max()), name


def test_every_tap_is_the_referees(case):
    model, config, weights, tokens = case
    with jax.enable_x64(True):
        taps = palm.activations(model, tokens)
    exact = forward.activations(config, weights, tokens)
    assert list(taps) == list(exact)
    for name, tap in taps.items():
        assert_close(tap, exact[name], name)


def test_the_loss_and_every_gradient_are_the_referees(case):
    model, config, weights, tokens = case
    with jax.enable_x64(True):
        loss, grads = palm.value_and_grad(model, tokens)
    exact_loss, exact_grads = backward.value_and_grad(config, weights, tokens)
    assert loss == pytest.approx(exact_loss, rel=1e-14)
    assert list(grads) == list(exact_grads)
    for name, gradient in grads.items():
        assert_close(gradient, exact_grads[name], name)


@pytest.mark.parametrize("mode", ["clamp", "add"])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_a_row_of_zeros_has_a_finite_gradient_through_every_norm(norm, mode):
    layer = Norm(small(norm=norm, norm_eps_mode=mode))
    x = jnp.zeros((2, 6)).at[1, 2].set(1)
    gradient = jax.grad(lambda x: layer(x)[:, 0].sum())(x)
    assert jnp.isfinite(gradient).all()
    assert gradient[1].any()


def test_a_row_of_zeros_has_a_finite_gradient_through_the_model(model, config):
    weights = palm.to_numpy(model)
    weights["embedding"][3] = 0
    loss, grads = palm.value_and_grad(palm.from_numpy(config, weights, backend="jax"), [[3, 3, 1, 3, 0]] * 2)
    assert np.isfinite(loss)
    assert all(np.isfinite(gradient).all() for gradient in grads.values())
