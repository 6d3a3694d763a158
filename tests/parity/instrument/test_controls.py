"""Negative controls: a fault put into one side must be caught, and at the right tap."""

import dataclasses

import jax
import numpy as np
import pytest
from cases import draw_weights
from support import draw_tokens

import palm
from palm import jax_impl, torch_impl
from palm.parity.recording.recording import record
from palm.spec.rounding import RATIO_BAR

DEPTH = 3


def plain(positions: str, **changes) -> palm.PaLMConfig:
    cfg = palm.PaLMConfig(
        num_tokens=37, dim=24, depth=DEPTH, heads=3, dim_head=8, positions=positions, norm="rmsnorm"
    )
    # With embeddings of std 0.02, rms² is near the eps that "add" puts beside it: the conventions part.
    return dataclasses.replace(cfg.resolve("jax"), norm_eps=1e-6, init="reference", **changes)


def half_split(matrix: np.ndarray, dim_head: int) -> np.ndarray:
    order = np.concatenate([np.arange(0, dim_head, 2), np.arange(1, dim_head, 2)])
    return matrix.reshape(len(matrix), -1, dim_head)[..., order].reshape(matrix.shape)


def swap(weights, a, b):
    weights[a], weights[b] = weights[b], weights[a]


def swap_up_and_gate(cfg, weights):
    swap(weights, "blocks.1.feedforward.up", "blocks.1.feedforward.gate")


def swap_key_and_value(cfg, weights):
    swap(weights, "blocks.1.attention.key", "blocks.1.attention.value")


def split_rotary_by_halves(cfg, weights):
    for name in ("query", "key"):
        weights[f"blocks.0.attention.{name}"] = half_split(weights[f"blocks.0.attention.{name}"], 8)


def transpose_the_output(cfg, weights):
    weights["blocks.2.attention.out"] = np.ascontiguousarray(weights["blocks.2.attention.out"].T)


def move_one_weight(cfg, weights):
    moved = weights["blocks.2.feedforward.down"].astype(np.float64)
    moved[3, 4] *= 1.5
    weights["blocks.2.feedforward.down"] = moved.astype(weights["norm"].dtype)


def forget_a_norm_scale(cfg, weights):
    weights["norm"] = np.ones_like(weights["norm"])


def untie(cfg, weights):
    weights["unembedding"] = np.roll(weights["embedding"].T, 1, axis=1).copy()
    return dataclasses.replace(cfg, tie_embeddings=False)


def perturb_eps(cfg, weights):
    return dataclasses.replace(cfg, norm_eps=3e-6)


def drop_the_clamp(cfg, weights):
    return dataclasses.replace(cfg, norm_eps_mode="add")


def subtract_the_mean(cfg, weights):
    return dataclasses.replace(cfg, norm="layernorm", norm_eps_mode=cfg.norm_eps_mode)


def change_theta(cfg, weights):
    return dataclasses.replace(cfg, rope_theta=9_000.0)


def forget_the_logit_scale(cfg, weights):
    return dataclasses.replace(cfg, init="paper")


# fault -> (positions, the config's other choices, the tap it must be caught at)
FAULTS = {
    swap_up_and_gate: ("alibi", {}, "blocks.1.feedforward"),
    swap_key_and_value: ("alibi", {}, "blocks.1.k"),
    split_rotary_by_halves: ("rotary", {}, "blocks.0.q"),
    transpose_the_output: ("alibi", {}, "blocks.2.attention_out"),
    move_one_weight: ("rotary", {}, "blocks.2.feedforward_out"),
    forget_a_norm_scale: ("rotary", {}, "norm"),
    untie: ("alibi", {}, "logits"),
    perturb_eps: ("alibi", {"norm_eps_mode": "add"}, "blocks.0.norm"),
    drop_the_clamp: ("alibi", {"norm_eps_mode": "clamp"}, "blocks.0.norm"),
    subtract_the_mean: ("rotary", {}, "blocks.0.norm"),
    change_theta: ("rotary", {}, "blocks.0.q"),
    forget_the_logit_scale: ("alibi", {}, "logits"),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("fault", "side"),
    [(fault, ("torch", "jax")[i % 2]) for i, fault in enumerate(FAULTS)],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_a_fault_in_one_side_is_caught_at_its_tap(fault, side, dtype):
    positions, choices, tap = FAULTS[fault]
    cfg = plain(positions, **({"share_kv": False, "norm_eps_mode": "add"} | choices))
    weights = draw_weights(cfg, 3, dtype)
    wrong_weights = dict(weights)
    wrong_cfg = fault(cfg, wrong_weights) or cfg
    other = "jax" if side == "torch" else "torch"
    with jax.enable_x64(dtype == "float64"):
        right = palm.from_numpy(cfg, weights, backend=other)
        wrong = palm.from_numpy(wrong_cfg, wrong_weights, backend=side)
        found = palm.compare(right, wrong, draw_tokens(cfg, (2, 24)))
    assert not found.agree
    assert found.first_divergence == tap, found.verdict
    assert side in found.verdict


def stretched_alibi(original):
    def slopes(cfg, **where):
        return original(cfg, **where) * 1.02

    return slopes


def coarse_positions(original):
    """Angles of bfloat16 positions: right up to 256, then off by up to 4."""

    def tables(cfg, length, *, dtype, **where):
        (cos, sin), _ = original(cfg, length, dtype=dtype, **where)
        rounded = (
            np.arange(length).astype(palm.spec.parameters.DTYPES["bfloat16"]).astype(int).clip(max=length - 1)
        )
        coarse = cos[rounded], sin[rounded]
        return coarse, coarse

    return tables


@pytest.mark.whole
@pytest.mark.parametrize(
    ("wing", "name", "patch", "positions", "tap"),
    [
        (torch_impl, "alibi_slopes", stretched_alibi, "alibi", "blocks.0.attention"),
        (jax_impl, "rotation_tables", coarse_positions, "rotary", "blocks.0.q"),
    ],
    ids=["torch", "jax"],
)
def test_a_fault_in_the_code_is_caught_at_its_tap(wing, name, patch, positions, tap, monkeypatch):
    cfg = plain(positions)
    weights = draw_weights(cfg, 3, "float32")
    models = [palm.from_numpy(cfg, weights, backend=backend) for backend in ("torch", "jax")]
    tokens = draw_tokens(cfg, (300,))
    assert palm.compare(*models, tokens).agree
    monkeypatch.setattr(wing.model, name, patch(getattr(wing.model, name)))
    jax.clear_caches()  # what is compiled already would not see the patch
    found = palm.compare(*models, tokens)
    jax.clear_caches()
    assert found.first_divergence == tap, found.verdict


def test_precision_lost_on_one_side_is_caught_by_the_bound():
    """A float32 side whose program rounds to bfloat16 inside: the ratio forgives it, the bound does not."""
    cfg = plain("rotary")
    model = palm.from_numpy(cfg, draw_weights(cfg, 3, "float32"), backend="torch")
    right = record(model, draw_tokens(cfg, (2, 24)))
    rounded = {
        n: t.astype(palm.spec.parameters.DTYPES["bfloat16"]).astype(np.float32) for n, t in right.taps.items()
    }
    found = palm.compare(right, dataclasses.replace(right, label="coarse", taps=rounded))
    assert max(found.ratios.values()) <= RATIO_BAR
    assert found.first_divergence == "embed"
    assert "but rounding explains at most" in found.verdict
