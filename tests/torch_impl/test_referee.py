"""The torch wing in float64 against the referee, for every architecture and without JAX."""

import numpy as np
import pytest
from cases import ARCHITECTURES, architecture_id, draw_tokens, draw_weights, small

import palm
from palm.spec import backward, forward

every_architecture = pytest.mark.parametrize("choices", ARCHITECTURES, ids=architecture_id)
every_path = pytest.mark.parametrize("attention", ["blockwise", "textbook"])


def assert_close(actual: np.ndarray, exact: np.ndarray, name: str) -> None:
    assert actual.shape == exact.shape, name
    assert np.abs(actual - exact).max() <= 1e-13 * max(1.0, np.abs(exact).max()), name


@every_path
@every_architecture
def test_every_tap_is_the_referees(choices, attention):
    config = small(**choices)
    weights, tokens = draw_weights(config), draw_tokens(config, 2, 7)
    taps = palm.activations(palm.from_numpy(config, weights, backend="torch", attention=attention), tokens)
    exact = forward.activations(config, weights, tokens)
    assert list(taps) == list(exact)
    for name, tap in taps.items():
        assert_close(tap, exact[name], name)


@every_architecture
def test_the_loss_and_every_gradient_are_the_referees(choices):
    config = small(**choices)
    weights, tokens = draw_weights(config), draw_tokens(config, 2, 7)
    loss, grads = palm.value_and_grad(palm.from_numpy(config, weights, backend="torch"), tokens)
    exact_loss, exact_grads = backward.value_and_grad(config, weights, tokens)
    assert loss == pytest.approx(exact_loss, rel=1e-14)
    assert list(grads) == list(exact_grads)
    for name, gradient in grads.items():
        assert_close(gradient, exact_grads[name], name)


@every_path
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3)])
def test_any_batch_dimensions_will_do(batch, attention):
    config = small()
    weights, tokens = draw_weights(config), draw_tokens(config, *batch, 5)
    model = palm.from_numpy(config, weights, backend="torch", attention=attention)
    exact = forward.activations(config, weights, tokens)
    for name, tap in palm.activations(model, tokens).items():
        assert_close(tap, exact[name], name)


@pytest.mark.parametrize("mode", ["clamp", "add"])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_row_of_zeros_has_a_finite_gradient(norm, mode, dtype):
    config = small(norm=norm, norm_eps_mode=mode)
    weights = draw_weights(config, dtype=dtype)
    weights["embedding"][3] = 0
    model = palm.from_numpy(config, weights, backend="torch")
    loss, grads = palm.value_and_grad(model, [3, 3, 1, 3])
    assert np.isfinite(loss)
    assert all(np.isfinite(gradient.astype(np.float64)).all() for gradient in grads.values())
