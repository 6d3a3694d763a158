"""palm computes what palm-rlhf-pytorch computes with its own weights, to float64 rounding."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import palm
from palm.backends import wing_of
from palm.upstream.read import from_upstream, read_upstream

SOURCE, TOLERANCE = "palm_rlhf_pytorch", 1e-12
# The four public sizes, scaled down.
SIZES = {
    "150m": {"dim": 24, "depth": 3, "heads": 2, "dim_head": 8},
    "410m": {"dim": 32, "depth": 4, "heads": 2, "dim_head": 8},
    "1b": {"dim": 48, "depth": 2, "heads": 3, "dim_head": 6},
    "2b": {"dim": 40, "depth": 3, "heads": 1, "dim_head": 10},
}


def sizes_of(name: str) -> dict[str, Any]:
    return {"num_tokens": 53, **SIZES[name]}


def original_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).numpy()


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.sampled(6)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("use_xpos", [True, False], ids=["xpos", "rotary"])
@pytest.mark.parametrize("qk_rmsnorm", [False, True], ids=["plain", "qk_norm"])
@pytest.mark.parametrize("version", ["0.2.1", "0.8.0"])
def test_the_logits_are_the_originals(rlhf, version, qk_rmsnorm, use_xpos, size, backend):
    model = rlhf.build(version, use_xpos=use_xpos, qk_rmsnorm=qk_rmsnorm, **sizes_of(size))
    tokens = np.random.default_rng(1).integers(0, 53, (2, 90))
    theirs = original_logits(model, tokens)
    norm_scale = "plain" if version == "0.2.1" else "plus-one"
    ours = from_upstream(model, SOURCE, backend=backend, norm_scale=norm_scale)
    config = palm.config_of(ours)
    assert config == palm.preset(
        "conceptofmind/palm-150m",
        **sizes_of(size),
        qk_norm=qk_rmsnorm,
        positions="xpos" if use_xpos else "rotary",
    )
    assert distance(palm.activations(ours, tokens)["logits"], theirs) <= TOLERANCE
    other = "plus-one" if norm_scale == "plain" else "plain"
    wrong = from_upstream(model, SOURCE, backend=backend, norm_scale=other)
    assert distance(palm.activations(wrong, tokens)["logits"], theirs) > 0.1


def test_the_base_of_xpos_is_a_live_models(rlhf):
    model = rlhf.build("0.2.1", rotary_xpos_scale_base=64, **sizes_of("150m"))
    tokens = np.random.default_rng(1).integers(0, 53, (1, 90))
    ours = from_upstream(model, SOURCE, backend="torch", norm_scale="plain")
    assert palm.config_of(ours).xpos_base == 64
    assert distance(palm.activations(ours, tokens)["logits"], original_logits(model, tokens)) <= TOLERANCE


@pytest.mark.sampled(2)
@pytest.mark.parametrize("qk_rmsnorm", [False, True], ids=["plain", "qk_norm"])
def test_cached_decoding_gives_the_originals_logits(rlhf, qk_rmsnorm, backend):
    """The original has no cache, and its centre of xPos moves with the length: palm's must not."""
    model = rlhf.build("0.8.0", qk_rmsnorm=qk_rmsnorm, **sizes_of("150m"))
    tokens = np.random.default_rng(1).integers(0, 53, (2, 60))
    ours = from_upstream(model, SOURCE, backend=backend, norm_scale="plus-one")
    decoder = wing_of(ours).Decoder(ours, tokens[:, :20], np.array([20, 20]), 60)
    for length in range(20, 60):
        theirs = original_logits(model, tokens[:, :length])[:, -1]
        assert distance(np.array(decoder.logits.tolist()), theirs) <= TOLERANCE
        decoder.feed(tokens[:, length])


@pytest.mark.whole
@pytest.mark.parametrize("length", [8192])
def test_as_many_positions_as_the_public_weights_have(rlhf, length, backend):
    """Once for both wings: the original holds n² scores, half a gigabyte of them, several times."""
    model = rlhf.build("0.2.1", num_tokens=53, dim=8, depth=1, heads=1, dim_head=4)
    tokens = np.random.default_rng(1).integers(0, 53, (1, length))
    theirs = original_logits(model, tokens)
    ours = from_upstream(model, SOURCE, backend=backend, norm_scale="plain")
    logits = (
        ours(torch.from_numpy(tokens)).detach().numpy() if backend == "torch" else np.asarray(ours(tokens))
    )
    assert distance(logits, theirs) <= TOLERANCE


def test_the_convention_of_norms_is_told_by_the_values(rlhf):
    """Read in the other convention, logits are off by more than their size, and nothing fails."""
    for version, found in (("0.2.1", "plain"), ("0.8.0", "plus-one")):
        model = rlhf.build(version, **sizes_of("150m"))
        with pytest.warns(UserWarning, match=f"norm_scale={found}: gamma is .* in the mean"):
            _, arrays = read_upstream(model, SOURCE)
        assert 0.5 < arrays["norm"].mean() < 1.5
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _, given = read_upstream(model, SOURCE, norm_scale=found)
        np.testing.assert_array_equal(given["norm"], arrays["norm"])


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "convention": ({}, "plain", "the norm is multiplied by 1 + scale"),
    "rotary": ({"positions": "rotary"}, "plus-one", "keys by ζ^(-i/512) (xPos)"),
    "base": ({"xpos_base": 100.0}, "plus-one", "the base of xPos is 512"),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", WRONG)
def test_beside_the_original_palm_names_what_its_own_model_has_wrong(rlhf, name):
    changes, norm_scale, words = WRONG[name]
    model = rlhf.build("0.8.0", **sizes_of("150m")).float()
    config, arrays = read_upstream(model, SOURCE, norm_scale=norm_scale)
    ours = palm.from_numpy(dataclasses.replace(config, **changes), arrays, backend="torch")

    def port(ids: np.ndarray) -> np.ndarray:
        return original_logits(model, np.atleast_2d(ids)).reshape(*ids.shape, 53)

    assert words in palm.compare(port, ours, np.arange(40)).verdict
