"""What the tests of the JAX wing share: models and one shape of tokens, so that little is compiled."""

import jax
import jax.numpy as jnp
import pytest
from cases import SIZES, draw_tokens

import palm

CONFIG = palm.PaLMConfig(**SIZES).resolve("jax")


@pytest.fixture(autouse=True)
def x64_stays_off():
    yield
    assert not jax.config.jax_enable_x64


@pytest.fixture(scope="session")
def config():
    return CONFIG


@pytest.fixture(scope="session")
def model():
    return palm.build(CONFIG, backend="jax", seed=0)


@pytest.fixture(scope="session")
def tokens():
    return jnp.asarray(draw_tokens(CONFIG, 2, 5), jnp.int32)
