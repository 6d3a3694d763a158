"""Right sides with weights that amplify rounding: they agree, or it is said that nothing can be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from cases import draw_tokens, draw_weights

import palm
from palm.parity.judge.bounds import backward_bounds, cancellation
from palm.parity.judge.noise import Precision, noisy
from palm.parity.recording.recording import record
from palm.spec import backward, forward
from palm.spec.arrays import Arrays
from palm.spec.initial import Draw
from palm.spec.parameters import DTYPES
from palm.spec.rounding import UNIT_ROUNDOFF, rms

CONFIGS = {
    arch: palm.PaLMConfig(num_tokens=96, dim=48, depth=2, heads=4, dim_head=16, ff_mult=2).resolve(arch)
    for arch in ("torch", "jax")
}


def with_a_mean(weights: Arrays) -> None:
    weights["embedding"] = weights["embedding"] + 20


def with_outliers(weights: Arrays) -> None:
    for name, weight in weights.items():
        if name.endswith("norm"):
            weight[:2] *= 30


def with_wide_scales(weights: Arrays) -> None:
    rng = np.random.default_rng(0)
    for name, weight in weights.items():
        if name.endswith("norm"):
            weight[...] = np.exp(rng.uniform(np.log(0.01), np.log(20), weight.shape))


CHANGES = (with_a_mean, with_outliers, with_wide_scales)


def models(
    change: Callable[[Arrays], None], arch: str, dtype: str, init: str, draw: Draw = "whole"
) -> list[palm.Model]:
    cfg = palm.PaLMConfig(**{**CONFIGS[arch].to_dict(), "init": init})
    weights = draw_weights(cfg, 1, draw=draw)
    change(weights)
    weights = {name: weight.astype(DTYPES[dtype]) for name, weight in weights.items()}
    return [palm.from_numpy(cfg, weights, backend=backend) for backend in ("torch", "jax")]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("init", ["paper", "reference"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("arch", CONFIGS)
@pytest.mark.parametrize("change", CHANGES)
def test_right_wings_raise_no_alarm_and_no_cause_is_invented(change, arch, dtype, init):
    found = palm.compare(*models(change, arch, dtype, init), draw_tokens(CONFIGS[arch], 2, 32))
    assert found.outcome in ("agree", "cannot tell"), found.verdict
    assert found.diagnoses == ()


def test_a_fault_beside_amplified_rounding_is_still_one():
    one, other = models(with_a_mean, "torch", "float32", "reference")
    weights = palm.to_numpy(other)
    weights["blocks.0.attention.query"][:, 0] *= 1.01
    wrong = palm.from_numpy(other.config, weights, backend="jax")
    found = palm.compare(one, wrong, draw_tokens(one.config, 2, 32))
    assert found.outcome == "differ"
    assert found.first_divergence == "blocks.0.q"


@pytest.mark.parametrize(
    ("which", "size", "outcome"),
    [(min, 1.2, "cannot tell"), (min, 2.0, "differ"), (max, 1.2, "differ"), (max, 0.8, "agree")],
)
def test_only_where_terms_cancel_a_little_more_than_the_bound_proves_nothing(which, size, outcome):
    """A gradient that larger ones cancel to has their rounding, of which only the size is known."""
    config, ids = CONFIGS["torch"], draw_tokens(CONFIGS["torch"], 2, 32)
    a, b = (record(one, ids) for one in models(lambda _: None, "torch", "float32", "paper"))
    gradients = backward.value_and_grad(config, a.weights, ids)[1]
    sizes = {name: rms(gradient) for name, gradient in gradients.items()}
    name = which(sizes, key=sizes.__getitem__)
    bound = backward_bounds((a, b)).times(cancellation(max(sizes.values()), sizes[name])).double
    drawn = np.random.default_rng(0).standard_normal(gradients[name].shape)
    moved = a.exact_grads[name] + size * bound * sizes[name] * drawn / rms(drawn)
    other = replace(a, exact_grads={**a.exact_grads, name: moved})
    found = palm.compare(other, b)
    assert found.outcome == outcome, found.verdict
    assert found.first_divergence == (None if outcome == "agree" else f"grad:{name}")


@pytest.mark.parametrize(
    ("weights", "draw"),
    [*(("whole", draw) for draw in range(100, 104)), *(("tiles", draw) for draw in (100, 101, 106, 113))],
)
def test_a_port_whose_rounding_is_like_a_mistake_is_not_told_to_have_one(weights, draw):
    """Beside a mean of 1,000 σ, bfloat16 has no room for what the branches add: as if one were missing.

    With weights drawn in tiles, one port in three is further off than three times the need.
    """
    model = models(with_a_mean, "torch", "bfloat16", "reference", weights)[0]
    ids = draw_tokens(model.config, 64)
    half = UNIT_ROUNDOFF["bfloat16"]
    rough = noisy(palm.to_numpy(model), Precision(half, half, UNIT_ROUNDOFF["float32"]), draw)

    def port(ids: np.ndarray) -> np.ndarray:
        return np.asarray(forward.run(model.config, rough, ids)["logits"]).astype(DTYPES["bfloat16"])

    found = palm.compare(port, model, ids)
    assert found.outcome in ("agree", "cannot tell"), found.verdict
