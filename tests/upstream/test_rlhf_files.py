"""What users bring of palm-rlhf-pytorch: wrapped, rounded and other files, each with a clear word."""

from __future__ import annotations

import copy
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from cases import assert_explains, assert_same_bits

import palm
from palm.spec.sizes import describe
from palm.upstream.read import read_upstream

SOURCE = "palm_rlhf_pytorch"
SIZES = {"num_tokens": 29, "dim": 16, "depth": 3, "heads": 2, "dim_head": 8}


@pytest.fixture(scope="module")
def state(rlhf) -> dict[str, torch.Tensor]:
    model = rlhf.build("0.2.1", qk_rmsnorm=True, **SIZES).float()
    return copy.deepcopy(model.state_dict())


@pytest.fixture(scope="module")
def arrays(state):
    return read(state)[1]


def read(given: Any) -> tuple[palm.PaLMConfig, dict[str, np.ndarray]]:
    return read_upstream(given, SOURCE, norm_scale="plain")


def told(given: Any, **options: Any) -> list[str]:
    found: list[str] = []
    read_upstream(given, SOURCE, tell=found.append, **options)
    return found


WRAPPED = {
    "compiled": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "both": lambda state: {f"module._orig_mod.{name}": value for name, value in state.items()},
    "blocks compiled": lambda state: {name.replace(".fn.", ".fn._orig_mod."): v for name, v in state.items()},
    "actor": lambda state: {f"actor_palm.{name}": value for name, value in state.items()},
    "trainer": lambda state: {"model": state, "optimizer": {"step": 3}, "step": 3},
    "trainer, parallel": lambda state: {"module": WRAPPED["parallel"](state), "epoch": 1},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_weights_in_wrappers_are_the_weights(name, state, arrays, tmp_path):
    torch.save(WRAPPED[name](state), tmp_path / "weights.pt")
    config, found = read(tmp_path / "weights.pt")
    assert (config.depth, config.qk_norm, config.positions) == (3, True, "xpos")
    assert_same_bits(found, arrays)


def test_tied_logits_may_be_missing_and_untied_ones_are_read(state, arrays):
    assert_same_bits(read({name: v for name, v in state.items() if name != "to_logits.weight"})[1], arrays)
    config, found = read({**state, "to_logits.weight": state["to_logits.weight"] * 2})
    assert not config.tie_embeddings
    np.testing.assert_array_equal(found["unembedding"], 2 * arrays["embedding"].T)


def test_frequencies_rounded_to_bfloat16_are_taken_and_told(state, arrays):
    """DeepSpeed casts buffers too; they are saved in either dtype."""
    for stored in (torch.bfloat16, torch.float32):
        rounded = {
            name: value.to(torch.bfloat16).to(stored) if "rotary_emb" in name else value
            for name, value in state.items()
        }
        [said] = told(rounded, norm_scale="plain")
        assert said.startswith("layers.0.fn.rotary_emb.inv_freq is rounded to bfloat16")
        config, found = read_upstream(rounded, SOURCE, norm_scale="plain", tell=lambda _: None)
        assert config.rope_theta == 10_000
        assert_same_bits(found, arrays)
    assert told(state, norm_scale="plain") == []


def test_a_constant_last_norm_is_told(state):
    [said] = told({**state, "norm.gamma": torch.ones(16)}, norm_scale="plain")
    assert "before 0.2.1 left the last norm out" in said


def test_weights_without_the_buffer_of_xpos_are_rotary(state):
    config, _ = read({name: value for name, value in state.items() if not name.endswith(".scale")})
    assert config.positions == "rotary"


def test_bfloat16_files_stay_bfloat16(state):
    narrow = {name: value.to(torch.bfloat16) for name, value in state.items()}
    found = read_upstream(narrow, SOURCE, norm_scale="plus-one", tell=lambda _: None)[1]
    assert found["norm"].dtype == ml_dtypes.bfloat16
    gamma = narrow["norm.gamma"]
    np.testing.assert_array_equal(found["norm"].astype(float), (gamma + 1).double().numpy())


def without(part: str) -> Any:
    return lambda state: {name: value for name, value in state.items() if part not in name}


def changed(name: str, change: Any) -> Any:
    return lambda state: {**state, name: change(state[name])}


REFUSED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "a block is missing": (without("layers.1."), ("tensors must be those of", "missing=", "layers.2")),
    "another program": (
        lambda s: {"0.weight": s["norm.gamma"]},
        ("weights must be one mapping with", "0.weight"),
    ),
    "two models": (
        lambda s: WRAPPED["actor"](s) | {f"critic.{name}": v for name, v in s.items()},
        ("weights must be those of one model", "'actor_palm.', 'critic.'"),
    ),
    "one name twice": (
        lambda s: {**s, "module.norm.gamma": s["norm.gamma"] * 2},
        ("weights must have each name once", "got 1 of them with the prefix of a wrapper"),
    ),
    "two dictionaries": (lambda s: {"model": s, "ema": s}, ("one mapping with", "several: model, ema")),
    "LoRA": (
        lambda s: {**s, "finetune_modules.default.0.0.A": torch.ones(16, 4)},
        ("no LoRA scopes", "finetune_modules.default", 'merge_finetune_params("default")'),
    ),
    "a bias": (changed("layers.1.fn.norm.beta", lambda t: t + 1), ("layers.1.fn.norm.beta must be zero",)),
    "other factors": (
        changed("layers.2.fn.rotary_emb.scale", lambda t: t * 1.1),
        ("layers.2.fn.rotary_emb.scale must be (2p + 0.4e) / 1.4e", "Leave the buffer out"),
    ),
    "one block with norms": (
        without("layers.1.fn.q_scale"),
        ("q_scale and k_scale must be in all blocks or in none", "2 and 3"),
    ),
    "float16": (
        changed("norm.gamma", lambda t: t.half()),
        ("norm.gamma must be a vector of", "float16", "Cast"),
    ),
    "a NaN": (changed("norm.gamma", lambda t: t * torch.nan), ("norm.gamma must be finite", "16 numbers")),
    "another width": (changed("layers.1.fn.q_scale", lambda t: t[:4]), ("layers.1.fn.q_scale must have",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_palm_model_has_is_refused_with_a_clear_word(name, state):
    change, words = REFUSED[name]
    with pytest.raises(palm.UpstreamError) as raised:
        read(change(state))
    assert_explains(raised, *words)


def test_the_convention_must_be_given_where_the_values_do_not_say_it(state):
    mixed = {**state, "norm.gamma": state["norm.gamma"] - 1}
    with pytest.raises(palm.UpstreamError) as raised:
        read_upstream(mixed, SOURCE)
    assert_explains(raised, "norm_scale must be given", "got means from", "--norm-scale plain")
    assert read(mixed)[0].depth == 3


def test_options_are_checked(state):
    with pytest.raises(palm.UpstreamError, match="norm_scale must be plain or plus-one"):
        read_upstream(state, SOURCE, norm_scale="times two")
    with pytest.raises(palm.UpstreamError, match="norm_scale must be left out but with"):
        read_upstream({}, "palm_jax.palm", norm_scale="plain")


def test_a_model_that_is_not_causal_is_refused(rlhf):
    with pytest.raises(palm.UpstreamError, match="causal must be True"):
        read(rlhf.build("0.8.0", causal=False, **SIZES))


@pytest.mark.parametrize("size", ["150m", "410m", "1b", "2b"])
def test_the_public_sizes_have_the_public_counts(rlhf, size):
    """The parameters that the original itself has of these sizes, without allocating them."""
    counts = {"150m": 144_811_776, "410m": 410_149_888, "1b": 983_861_248, "2b": 2_157_836_800}
    config = palm.preset(f"conceptofmind/palm-{size}")
    names = ("num_tokens", "dim", "depth", "heads", "dim_head", "ff_mult")
    with torch.device("meta"):
        model = rlhf.module("0.8.0").PaLM(**{name: getattr(config, name) for name in names})
    assert sum(p.numel() for p in model.parameters()) == counts[size]
    assert describe(config).total == counts[size]
