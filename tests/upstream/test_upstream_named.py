"""The four originals beside a palm model of a wrong setting: the setting is named from logits alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import palm
from palm.upstream.originals import original
from palm.upstream.read import read_upstream

LITE, ROTARY = "palm_pytorch.palm_lite", "palm_pytorch.palm_pytorch"
JAX, JAX_LITE = "palm_jax.palm", "palm_jax.palm_lite"
Wrong = Callable[
    [palm.PaLMConfig, dict[str, np.ndarray], Path], tuple[palm.PaLMConfig, dict[str, np.ndarray]]
]


def setting(**changes: Any) -> Wrong:
    """The model is built with other fields than the weights were trained with."""
    return lambda config, arrays, path: (dataclasses.replace(config, **changes), arrays)


def imported_as(source: str) -> Wrong:
    """The file is taken for one of the other source, whose tensors have the same names and fit."""
    return lambda config, arrays, path: read_upstream(path, source)


def unpermuted(**changes: Any) -> Wrong:
    """Columns of queries and keys are copied as they are, pairs (p, p + e/2) where palm has (2p, 2p+1)."""

    def wrong(config: palm.PaLMConfig, arrays: dict[str, np.ndarray], path: Path) -> Any:
        def halves(matrix: np.ndarray) -> np.ndarray:
            pairs = matrix.reshape(len(matrix), -1, config.dim_head // 2, 2)
            return pairs.swapaxes(-1, -2).reshape(matrix.shape)

        turned = ("attention.query", "attention.key")
        copied = {n: halves(array) if n.endswith(turned) else array for n, array in arrays.items()}
        return dataclasses.replace(config, **changes), copied

    return wrong


class Case(NamedTuple):
    """A wrong setting; the cause it has to be named as, and what the verdict has to say of it."""

    source: str
    wrong: Wrong
    cause: str
    told: tuple[str, ...]
    sizes: dict[str, int] = {}  # noqa: RUF012


CASES = {
    "lite: rotary": Case(
        LITE, setting(positions="rotary"), "config", ("positions='alibi' instead of 'rotary'",)
    ),
    "lite: the other torch original's architecture": Case(
        LITE,
        setting(positions="rotary", norm="layernorm", norm_eps=1e-5, norm_eps_mode="add"),
        "config",
        ("positions='alibi'", "norm='rmsnorm'", "norm_eps_mode='clamp'", f"the architecture of {LITE}"),
    ),
    "lite: eps of the jax original": Case(
        LITE,
        setting(norm_eps=1e-5, norm_eps_mode="add"),
        "eps convention",
        ('"clamp" instead of "add", with eps 1e-08',),
    ),
    "lite: the paper's initialisation": Case(
        LITE,
        setting(init="paper"),
        "logit scale",
        ("the logits are multiplied by 1 (no factor) instead of 0.204",),
    ),
    "lite: that and rotary": Case(
        LITE,
        setting(init="paper", positions="rotary"),
        "config and logit scale",
        ("positions='alibi' instead of 'rotary'", "(init='reference')"),
    ),
    "rotary: columns not permuted": Case(
        ROTARY, unpermuted(), "rotary layout", ("half-split instead of interleaved",)
    ),
    "rotary: that and ALiBi": Case(
        ROTARY,
        unpermuted(positions="alibi"),
        "config and rotary layout",
        ("positions='rotary' instead of 'alibi'", "half-split"),
    ),
    "rotary: ALiBi": Case(
        ROTARY, setting(positions="alibi"), "config", ("positions='rotary' instead of 'alibi'",)
    ),
    "rotary: θ of a longer context": Case(
        ROTARY, setting(rope_theta=500_000.0), "rotary θ", ("θ is 10000 instead of 500000",)
    ),
    "rotary: RMSNorm": Case(ROTARY, setting(norm="rmsnorm"), "mean subtraction", ("the mean is subtracted",)),
    "jax: imported as its lite": Case(
        JAX,
        imported_as(JAX_LITE),
        "config",
        ("positions='rotary'", "heads=4 instead of 2", "dim_head=6 instead of 12", f"and {JAX}, or fix"),
        {"heads": 4, "dim_head": 6},
    ),
    "jax: the torch default's norm": Case(
        JAX,
        setting(norm="rmsnorm", norm_eps=1e-8, norm_eps_mode="clamp"),
        "config",
        ("norm='layernorm' instead of 'rmsnorm'", "norm_eps=1e-05 instead of 1e-08"),
    ),
    "jax: θ and the paper's initialisation": Case(
        JAX,
        setting(rope_theta=1e6, init="paper"),
        "rotary θ and logit scale",
        ("θ is 10000 instead of 1e+06",),
    ),
    "jax lite: imported as the other": Case(
        JAX_LITE,
        imported_as(JAX),
        "config",
        (
            "positions='alibi'",
            "heads=3 instead of 6",
            "dim_head=12 instead of 6",
            f"of {JAX_LITE}, or fix",
        ),
        {"heads": 3, "dim_head": 12},
    ),
    "jax lite: eps added to the mean": Case(
        JAX_LITE, setting(norm_eps=1e-5), "eps convention", ("eps 1e-05 is added to the sum of squares",)
    ),
    "jax lite: eps and positions": Case(
        JAX_LITE,
        setting(positions="rotary", norm="layernorm", norm_eps=1e-5),
        "config",
        ("positions='alibi'", "norm='rmsnorm'", f"the architecture of {JAX_LITE}"),
    ),
}


@pytest.fixture(scope="module")
def table():
    """Lines that `pytest -s` shows in the end."""
    lines = []
    yield lines
    print("\n" + "\n".join(lines))


@pytest.fixture
def saved(originals, tmp_path):
    """Writes an original's weights, in float32, as its users do."""

    def save(source, *, change=lambda tensors: tensors, **sizes):
        tensors = {k: x.astype(np.float32) for k, x in originals.build(source, **sizes).tensors().items()}
        path = tmp_path / ("weights.pt" if source in (LITE, ROTARY) else "weights.npz")
        if path.suffix == ".pt":
            torch.save({name: torch.from_numpy(array) for name, array in change(tensors).items()}, path)
        else:
            np.savez(path, **change(tensors))
        return path

    return save


def tokens(seed):
    return np.random.default_rng(seed).integers(0, 29, (2, 40))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("seed", [11, 12])
@pytest.mark.parametrize("name", CASES)
def test_the_wrong_setting_is_named(saved, table, name, seed):
    case = CASES[name]
    path = saved(case.source, seed=seed, **case.sizes)
    function, config, arrays = original(case.source, path)
    backend = "torch" if seed % 2 else "jax"
    assert palm.compare(function, palm.from_numpy(config, arrays, backend=backend), tokens(seed)).agree
    found = palm.compare(
        function, palm.from_numpy(*case.wrong(config, arrays, path), backend=backend), tokens(seed)
    )
    table.append(f"{name:46s} {found.before:.1e} -> {found.verdict}")
    assert not found.agree
    assert found.likenesses[0].cause == case.cause, found.verdict
    assert found.likenesses[0].after <= found.bound
    for told in case.told:
        assert told in found.verdict


def test_every_original_has_at_least_two_wrong_settings():
    counts = {source: sum(case.source == source for case in CASES.values()) for source in palm.PRESETS}
    assert all(counts[source] >= 2 for source in (LITE, ROTARY, JAX, JAX_LITE))


def test_a_theta_on_no_list_is_found(saved):
    """Frequencies are part of a torch file; an importer that takes the published ones is off."""

    def change(tensors):
        frequencies = (12_345.0 ** (-np.arange(5) / 5)).astype(np.float32)
        return {k: frequencies if k.endswith("inv_freq") else x for k, x in tensors.items()}

    function, config, arrays = original(ROTARY, saved(ROTARY, change=change))
    assert config.rope_theta == pytest.approx(12_345.0)
    wrong = dataclasses.replace(config, rope_theta=10_000.0)
    found = palm.compare(function, palm.from_numpy(wrong, arrays, backend="torch"), tokens(1))
    assert [one.cause for one in found.likenesses] == ["rotary θ"], found.verdict
    assert "θ is 12345 instead of 1e+04" in found.verdict


def test_an_untied_state_loaded_into_the_tied_original_is_found(originals, saved):
    """Its own load_state_dict puts the output matrix where the embedding was, and says nothing."""
    path = saved(LITE, change=lambda tensors: {**tensors, "4.weight": tensors["4.weight"] * 1.5 + 0.01})
    config, arrays = read_upstream(path, LITE)
    assert not config.tie_embeddings
    live = originals.module(LITE).PaLM(**originals.sizes)
    live.load_state_dict(torch.load(path, weights_only=True))

    def naive(ids):
        return live(torch.from_numpy(ids))

    found = palm.compare(naive, palm.from_numpy(config, arrays, backend="torch"), tokens(1))
    assert "tie_embeddings=True instead of False, the output matrix for both" in found.verdict


def test_weights_that_the_model_does_not_have_are_said_to_be_unknown(saved):
    """A model with one matrix of keys cannot show what the original makes of its values."""
    function, config, arrays = original(ROTARY, saved(ROTARY))
    shared = dataclasses.replace(config, share_kv=True)
    kept = {
        name.replace("attention.key", "attention.key_value"): array
        for name, array in arrays.items()
        if not name.endswith("attention.value")
    }
    found = palm.compare(function, palm.from_numpy(shared, kept, backend="torch"), tokens(1))
    assert not found.agree
    assert found.likenesses == ()
