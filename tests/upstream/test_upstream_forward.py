"""palm computes what each original computes with the original's own weights, to float64 rounding."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest

import palm
from palm.upstream import read as upstream
from palm.upstream.read import from_upstream, read_upstream

TOLERANCE = 1e-13
# JAX compiles the originals anew for each shape and length, block by block: few, small and shallow.
SHAPES = {
    "three heads": {},
    "one head": {"heads": 1, "dim_head": 6, "depth": 1, "ff_mult": 3},
    "eight heads": {"dim": 32, "heads": 8, "dim_head": 6, "depth": 1, "ff_mult": 4},
    # ALiBi slopes that float32 rounds, and a single rotary pair.
    "twelve heads": {"dim": 16, "heads": 12, "dim_head": 2, "depth": 1, "ff_mult": 1},
}


@pytest.fixture(scope="module", params=SHAPES)
def case(request, originals, source):
    """(sizes, original, [(tokens, its logits)])."""
    sizes = {**originals.sizes, **SHAPES[request.param]}
    original = originals.build(source, **sizes)
    batches = [draw_tokens(length) for length in ((1, 40) if sizes["heads"] <= 3 else (40,))]
    return sizes, original, [(tokens, original.logits(tokens)) for tokens in batches]


def draw_tokens(length):
    tokens = np.random.default_rng(length).integers(0, 29, (2, length))
    tokens[1, 0] = 0  # the token whose tiny embedding makes eps matter
    return tokens


def logits(model, tokens):
    if palm.backend_of(model) == "torch":
        import torch

        with torch.no_grad():
            return model(torch.from_numpy(tokens)).numpy()
    return np.asarray(model(tokens))


def distance(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.mark.sampled(3)
def test_the_config_is_read_from_the_weights(case, source):
    sizes, original, _ = case
    config, _ = read_upstream(original.model, source)
    expected = palm.preset(source, **sizes)
    if source == "palm_jax.palm_lite":
        expected = dataclasses.replace(expected, norm_eps=1e-5 / sizes["dim"])
    assert config == expected


@pytest.mark.sampled(4)
def test_the_logits_are_the_originals(case, source, backend):
    _, original, batches = case
    model = from_upstream(original.model, source, backend=backend)
    for tokens, theirs in batches:
        assert np.isfinite(theirs).all()
        assert distance(logits(model, tokens), theirs) <= TOLERANCE


def test_the_options_reach_the_model(originals, backend):
    source = "palm_pytorch.palm_lite"
    original = originals.build(source)
    assert (
        palm.dtype_of(from_upstream(original.model, source, backend=backend, dtype="bfloat16")) == "bfloat16"
    )
    model = from_upstream(original.model, source, backend=backend, attention="textbook", device="cpu")
    assert palm.dtype_of(model) == "float64"
    tokens = draw_tokens(5)
    assert distance(logits(model, tokens), original.logits(tokens)) <= TOLERANCE


def test_the_import_owns_its_weights(originals, source):
    original = originals.build(source)
    _, arrays = read_upstream(original.model, source)
    before = original.tensors()
    for array in arrays.values():
        array[:] = 0
    after = original.tensors()
    assert all(np.array_equal(after[name], before[name]) for name in before)


@pytest.fixture(scope="module")
def error(originals):
    """The distance from an original's logits after some step of the import was changed."""
    tokens = draw_tokens(40)

    @cache
    def oracle(name):
        original = originals.build(name)
        return original.model, original.logits(tokens)

    def measure(name, change_config=None, change_arrays=None):
        model, theirs = oracle(name)
        config, arrays = read_upstream(model, name)
        config = dataclasses.replace(config, **(change_config or {}))
        arrays = {**arrays, **(change_arrays(arrays) if change_arrays else {})}
        return distance(logits(palm.from_numpy(config, arrays, backend="torch"), tokens), theirs)

    return measure


class TestNegativeControls:
    """What the comparison must notice: each breaks one step of the import, and is far off."""

    def test_nothing_broken(self, error, source):
        assert error(source) <= TOLERANCE

    def test_half_split_pairs_left_in_place(self, error, monkeypatch):
        monkeypatch.setattr(upstream, "_interleave", lambda matrix, dim_head: matrix)
        assert error("palm_pytorch.palm_pytorch") > 1e-4

    def test_interleaved_pairs_moved(self, error):
        def interleave(arrays):
            names = [name for name in arrays if name.endswith(("query", "key"))]
            return {name: upstream._interleave(arrays[name], 10) for name in names}

        assert error("palm_jax.palm", change_arrays=interleave) > 1e-4

    def test_gate_and_up_swapped(self, error, source):
        def swap(arrays):
            other = {"up": "gate", "gate": "up"}
            names = [name for name in arrays if name.endswith(("up", "gate"))]
            return {name: arrays[f"{name.rpartition('.')[0]}.{other[name.split('.')[-1]]}"] for name in names}

        assert error(source, change_arrays=swap) > 1e-4

    @pytest.mark.parametrize("name", ["palm_pytorch.palm_pytorch", "palm_jax.palm"])
    def test_key_and_value_swapped(self, error, name):
        def swap(arrays):
            keys = {n: arrays[n.replace("value", "key")] for n in arrays if n.endswith("value")}
            values = {n: arrays[n.replace("key", "value")] for n in arrays if n.endswith("key")}
            return keys | values

        assert error(name, change_arrays=swap) > 1e-4

    @pytest.mark.parametrize(
        ("name", "wrong"),
        [
            ("palm_jax.palm_lite", {"norm_eps": 1e-5}),
            ("palm_jax.palm_lite", {"norm_eps_mode": "clamp"}),
            ("palm_jax.palm", {"norm_eps": 1e-6}),
            ("palm_jax.palm", {"norm_eps_mode": "clamp"}),
            ("palm_pytorch.palm_lite", {"norm_eps": 1e-5}),
            ("palm_pytorch.palm_lite", {"norm_eps_mode": "add"}),
            ("palm_pytorch.palm_pytorch", {"norm_eps": 1e-8}),
            ("palm_pytorch.palm_pytorch", {"rope_theta": 10_001.0}),
            ("palm_pytorch.palm_pytorch", {"init": "paper"}),
        ],
    )
    def test_a_wrong_convention(self, error, name, wrong):
        assert error(name, change_config=wrong) > 1e-9


class TestWhatOnlySomeModelsTell:
    """Constants that a model holds beside its weights."""

    @pytest.mark.parametrize("name", ["palm_pytorch.palm_lite", "palm_jax.palm", "palm_jax.palm_lite"])
    def test_eps_of_a_live_model(self, originals, name):
        original = originals.build(name)
        set_eps(original.model, 1e-3)
        config, _ = read_upstream(original.model, name)
        assert config.norm_eps == (1e-3 / 24 if name == "palm_jax.palm_lite" else 1e-3)
        tokens = draw_tokens(5)
        ours = logits(from_upstream(original.model, name, backend="torch"), tokens)
        assert distance(ours, original.logits(tokens)) <= TOLERANCE

    @pytest.mark.parametrize("theta", [10_000.0, 500_000.0, 1e6, 123_456.789])
    def test_theta_of_a_rotary_buffer(self, originals, theta):
        state = originals.build("palm_pytorch.palm_pytorch").model.state_dict()
        import torch

        exponents = torch.arange(0, 10, 2).float() / 10
        for name in state:
            if name.endswith("inv_freq"):
                state[name] = 1.0 / (theta**exponents)
        config, _ = read_upstream(state, "palm_pytorch.palm_pytorch")
        assert config.rope_theta == pytest.approx(theta, rel=1e-6)
        if theta != 123_456.789:
            assert config.rope_theta == theta

    @pytest.mark.parametrize("dim_head", [2, 4, 64, 256])
    def test_theta_as_the_original_rounds_it(self, originals, dim_head):
        module = originals.module("palm_pytorch.palm_pytorch")
        sizes = {**originals.sizes, "heads": 1, "dim_head": dim_head}
        for cast in ("float", "double", "bfloat16"):
            model = getattr(module.PaLM(**sizes), cast)()
            assert read_upstream(model, "palm_pytorch.palm_pytorch")[0].rope_theta == 10_000.0

    @pytest.mark.parametrize("name", ["palm_pytorch.palm_lite", "palm_pytorch.palm_pytorch"])
    def test_an_output_matrix_of_its_own(self, originals, name, backend):
        import torch

        original = originals.build(name)
        output = original.model[-1]
        output.weight = torch.nn.Parameter(output.weight.detach() + 0.01)
        config, arrays = read_upstream(original.model, name)
        assert not config.tie_embeddings
        assert arrays["unembedding"].shape == (24, 29)
        tokens = draw_tokens(5)
        ours = logits(from_upstream(original.model, name, backend=backend), tokens)
        assert distance(ours, original.logits(tokens)) <= TOLERANCE


def set_eps(model, eps):
    """eps is a plain attribute in torch, and a static field of a frozen module in Equinox."""
    if hasattr(model, "modules"):
        for part in model.modules():
            if hasattr(part, "eps"):
                part.eps = eps
    else:
        for part in (model, *model.layers):
            object.__setattr__(part.norm, "eps", eps)
