"""The two optimisers of the JAX wing, written once so that they are those of `palm.spec.optimizer`.

optax.adamw forms its bias corrections in float32; optax.adafactor is another algorithm. One parameter at a
time: a stack of layers goes through `jax.vmap`, because Adafactor's scale is each layer's own. Letters:
p parameter, g gradient (already clipped), m and s first and second moment.
Mirror: palm.torch_impl.optimizer.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from palm.recipes import SCALE_FLOOR, SQUARE_FLOOR, Rates

Update = tuple[Array, Array, Array]


def adamw(p: Array, g: Array, m: Array, s: Array, rates: Rates, eps: float) -> Update:
    """What a step takes from p, and the new moments.

    m ← β₁m + (1−β₁)g;  s ← β₂s + (1−β₂)g²;  update = lr·(m/(1−β₁ᵏ)) / (sqrt(s/(1−β₂ᵏ)) + eps) + decay·p.
    Source: Loshchilov & Hutter (arXiv:1711.05101), algorithm 2. Norm scales, the vectors, do not decay.
    """
    m = rates.beta1 * m + rates.rest1 * g
    s = rates.beta2 * s + rates.rest2 * jnp.square(g)
    direction = (m / rates.correction1) / (jnp.sqrt(s / rates.correction2) + eps)
    return rates.lr * direction + _decayed(p, rates), m, s


def adafactor(p: Array, g: Array, m: Array, s: Array, rates: Rates, eps: float) -> Update:
    """What a step takes from p, and the new moments; `eps` is not used.

    s ← β₂s + (1−β₂)(g² + 1e-30) with β₂ = 1 − k^−0.8;  m ← β₁m + (1−β₁)·g/sqrt(s);
    update = lr·max(1e-3, rms(p))·m + decay·p. Not factored; the momentum is of the scaled gradient.
    Source: PaLM (arXiv:2204.02311) §5; Shazeer & Stern (arXiv:1804.04235) algorithm 4, §8.
    """
    s = rates.beta2 * s + rates.rest2 * (jnp.square(g) + SQUARE_FLOOR)
    m = rates.beta1 * m + rates.rest1 * (g / jnp.sqrt(s))
    scale = jnp.maximum(rms(p), SCALE_FLOOR)
    return rates.lr * scale * m + _decayed(p, rates), m, s


OPTIMIZERS = {"adamw": adamw, "adafactor": adafactor}


def rms(p: Array) -> Array:
    """The root of the mean square of all elements."""
    return jnp.sqrt(jnp.square(p).mean())


def _decayed(p: Array, rates: Rates) -> Array | float:
    return rates.decay * p if p.ndim > 1 else 0.0
