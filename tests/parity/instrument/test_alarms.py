"""Right sides with weights that amplify rounding: they agree, or it is said that nothing can be told."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from cases import draw_tokens, draw_weights

import palm
from palm.spec.arrays import Arrays
from palm.spec.parameters import DTYPES

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


def models(change: Callable[[Arrays], None], arch: str, dtype: str, init: str) -> list[palm.Model]:
    cfg = palm.PaLMConfig(**{**CONFIGS[arch].to_dict(), "init": init})
    weights = draw_weights(cfg, 1)
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
