"""Right ports beside a model of another config, and ports with a number on no list: named from logits."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from cases import draw_tokens, draw_weights, small
from ports import ALIBI, PORTS, ROTARY, in_jax, in_numpy, in_torch

import palm
from palm.parity.blackbox import search
from palm.parity.blackbox.compare import compare_foreign
from palm.parity.blackbox.configs import alternatives
from palm.parity.blackbox.guess import Search
from palm.parity.blackbox.result import ForeignComparison
from palm.parity.blackbox.scalars import fit, roundest
from palm.spec.rounding import rounding_bound

RMSNORM = {"norm": "rmsnorm", "norm_eps": 1e-8, "norm_eps_mode": "clamp"}
LAYERNORM = {"norm": "layernorm", "norm_eps": 1e-5, "norm_eps_mode": "add"}


def compared(
    port: Any, changes: dict[str, Any], *mistake: Any, seed: int = 5, moved: dict[str, str] | None = None
) -> ForeignComparison:
    """The logits of the port, of its own config, beside a model with `changes`.

    `moved`: its weights by those it takes.
    """
    own = PORTS[port]
    config = dataclasses.replace(own, **changes)
    weights = draw_weights(config, seed, "float32")
    theirs = {**weights, **{to: weights[name] for to, name in (moved or {}).items()}}

    def my_port(ids: np.ndarray) -> Any:
        return port(own, theirs, ids, *mistake)

    tokens = draw_tokens(config, 2, 48, seed=seed)
    return compare_foreign(my_port, palm.from_numpy(config, weights, backend="torch"), tokens)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("port", "changes"),
    [
        (in_numpy, {"positions": "alibi"}),
        (in_jax, {"positions": "alibi"}),
        (in_torch, {"positions": "rotary"}),
        (in_numpy, RMSNORM),
        (in_torch, LAYERNORM),
        (in_jax, {"positions": "alibi", **RMSNORM}),
        (in_torch, {"positions": "rotary", **LAYERNORM}),
    ],
)
def test_another_config_than_the_models_is_named(port, changes, seed):
    # eps shows where the residual stream is small.
    found = compared(port, {**changes, "init": "reference"} if port is in_jax else changes, seed=seed)
    assert not found.agree
    [likeness, *_] = found.likenesses
    assert likeness.cause in ("config", "mean subtraction"), found.verdict
    assert likeness.after <= found.bound < found.before
    own = PORTS[port]
    if "positions" in changes:
        assert likeness.cause == "config"
        assert f"positions={own.positions!r} instead of {changes['positions']!r}" in likeness.detail
        assert likeness.fix.startswith(f"Build the model with positions={own.positions!r}")
        assert "or fix the port." in likeness.fix
    if "norm" in changes and likeness.cause == "config":
        assert f"norm={own.norm!r} instead of {changes['norm']!r}" in likeness.detail
    elif "norm" not in changes:
        assert "norm" not in likeness.detail


@pytest.mark.parametrize("part", ["key", "value"])
def test_keys_and_values_from_one_matrix_of_two_are_named(part):
    other = {"key": "value", "value": "key"}[part]
    moved = {f"blocks.{i}.attention.{other}": f"blocks.{i}.attention.{part}" for i in range(2)}
    found = compared(in_jax, {}, moved=moved)
    assert [one.cause for one in found.likenesses] == ["config"]
    assert f"share_kv=True instead of False, the matrix of the {part}s for both" in found.verdict


def test_an_output_matrix_loaded_over_the_tied_embedding_is_named():
    weights = draw_weights(dataclasses.replace(ROTARY, tie_embeddings=False), 5, "float32")
    model = palm.from_numpy(dataclasses.replace(ROTARY, tie_embeddings=False), weights, backend="jax")
    theirs = {**weights, "embedding": np.ascontiguousarray(weights["unembedding"].T)}
    found = palm.compare(lambda ids: in_numpy(ROTARY, theirs, ids), model, draw_tokens(ROTARY, 40))
    assert "tie_embeddings=True instead of False, the output matrix for both" in found.verdict


@pytest.mark.whole
def test_another_config_and_a_mistake_are_named_together():
    found = compared(in_numpy, {"positions": "alibi"}, "layout")
    assert found.likenesses[0].cause == "config and rotary layout", found.verdict
    assert "positions='rotary' instead of 'alibi'; the rotary pairs are half-split" in found.verdict
    found = compared(in_torch, {"positions": "rotary"}, "logits", 0.7)
    assert found.likenesses[0].cause == "config and logit scale", found.verdict
    assert "the logits are multiplied by 0.7 instead of 0.204" in found.verdict


def test_the_other_initialisation_is_told_by_its_logit_scale():
    found = compared(in_numpy, {"init": "paper", "positions": "alibi"})
    assert (
        "positions='rotary' instead of 'alibi'; the logits are multiplied by 1 instead of 0.204 "
        "(init='reference')" in found.verdict
    )


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("port", "mistake", "value", "cause", "told"),
    [
        (in_jax, "theta", 12_345.0, "rotary θ", "rotary θ is 12345 instead of 1e+04"),
        (in_jax, "theta", 77.7, "rotary θ", "rotary θ is 77.7 instead of 1e+04"),
        (in_numpy, "eps", 4e-6, "eps", "eps is 4e-06 instead of 1e-05"),
        (in_numpy, "eps", 0.0123, "eps", "eps is 0.0123 instead of 1e-05"),
        (in_torch, "logits", 0.7, "logit scale", "multiplied by 0.7 instead of 0.204"),
        (in_numpy, "other scale", 0.15, "query scale", "the query scale is 0.15 instead of 0.354"),
        (in_numpy, "embedding", 1.7, "embedding scale", "multiplied by 1.7 instead of 1"),
        (in_torch, "steeper", 2.5, "ALiBi slopes", "the ALiBi slopes are multiplied by 2.5 instead of 1"),
    ],
)
def test_a_number_that_is_on_no_list_is_found(port, mistake, value, cause, told):
    found = compared(port, {}, mistake, value)
    assert found.likenesses[0].cause == cause, found.verdict
    assert found.likenesses[0].after <= found.bound
    assert told in found.verdict


def test_a_search_that_is_cut_short_says_so(monkeypatch):
    weights = draw_weights(ROTARY, 5, "float32")
    model = palm.from_numpy(ROTARY, weights, backend="torch")

    def port(ids: np.ndarray) -> np.ndarray:
        return np.abs(in_numpy(ROTARY, weights, ids))

    whole = compare_foreign(port, model, draw_tokens(ROTARY, 40))
    assert whole.left_out == 0
    assert "left out" not in whole.verdict
    monkeypatch.setattr(search, "_WORK", 4e8)
    short = compare_foreign(port, model, draw_tokens(ROTARY, 40))
    assert short.left_out > 500
    assert short.tried < whole.tried
    assert short.to_dict()["left_out"] == short.left_out
    assert f"palm did not try {short.left_out:,} more variants, to save time" in short.verdict


@pytest.mark.parametrize("config", [ROTARY, ALIBI, small(tie_embeddings=False), small(heads=1, dim_head=3)])
def test_alternatives_are_other_configs_each_once_simplest_first(config):
    found = alternatives(config)
    assert all(one.detail and one.fix for one in found)
    assert len({(one.config, one.detail) for one in found}) == len(found)
    assert [one.choices for one in found] == sorted(one.choices for one in found)
    # Positions, norm, keys and values, ties; with one head of an odd width there is only another norm.
    most = 1 if config.heads == 1 else 3 if config.tie_embeddings else 4
    assert {one.choices for one in found} == set(range(1, most + 1))
    for one in found:
        assert one.config.inner_dim == config.inner_dim
        assert one.config.positions == "alibi" or one.config.dim_head % 2 == 0


def test_a_fit_ends_at_the_rounding_of_what_it_is_given():
    x = np.linspace(0.0, 3.0, 50)
    for true in (1e-3, 0.37, 2.0):
        value, after = fit(np.cos(true * x), lambda a: np.cos(a * x), 1e-4, 10.0, 1.0)
        assert abs(value / true - 1) < 1e-10
        assert after < 1e-12
    _, after = fit(np.sin(x), lambda a: np.cos(a * x), 1e-4, 10.0, 1.0)
    assert after > 0.1


def test_the_roundest_number_has_the_fewest_digits():
    assert roundest(0.70000001, lambda x: abs(x - 0.7) < 1e-6) == 0.7
    assert roundest(12345.0004, lambda x: abs(x - 12345) < 1e-2) == 12345.0
    assert roundest(np.pi, lambda x: x == np.pi) == np.pi


@pytest.mark.sampled(1)
@pytest.mark.parametrize("times", [1.3, 1.6])
def test_a_distance_just_above_rounding_is_not_fitted_away(times):
    """Noise, of which a factor that is free takes off what lies in its direction: no explanation."""
    weights = draw_weights(ROTARY, 5, "float32")
    tokens = draw_tokens(ROTARY, 32)
    exact = in_numpy(ROTARY, {name: array.astype(np.float64) for name, array in weights.items()}, tokens)
    bound = times * rounding_bound(ROTARY, "float32", 32, ROTARY.depth)
    noise = np.random.default_rng(0).standard_normal(exact.shape) * np.sqrt(np.mean(exact**2))
    off = exact * (1 + 0.9 * bound) + 0.6 * bound * noise
    made = Search(ROTARY, weights, tokens, off, "float32")
    assert made.bound < made.before < 2 * made.bound
    assert 0.6 * bound < made.bound
    assert search.explain(made).met == ()


@pytest.mark.parametrize("share_kv", [True, False], ids=["shared", "separate"])
def test_a_mistake_beside_normed_heads_is_found_though_heads_of_other_sizes_have_no_scales(
    share_kv,
):
    config = small(qk_norm=True, share_kv=share_kv, heads=8, dim_head=8)
    weights = draw_weights(config, 5, "float32")
    changed = {**weights, "blocks.1.feedforward.gate": weights["blocks.1.feedforward.gate"][:, ::-1].copy()}
    model, port = (palm.from_numpy(config, one, backend="torch") for one in (weights, changed))
    tokens = draw_tokens(config, 2, 24)
    assert compare_foreign(lambda ids: palm.activations(model, ids)["logits"], model, tokens).agree
    found = compare_foreign(lambda ids: palm.activations(port, ids)["logits"], model, tokens)
    assert found.outcome == "differ"
