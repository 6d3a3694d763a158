"""The named configs, against what they are named after."""

import pytest
from cases import assert_explains

from palm import PRESETS, ConfigError, PaLMConfig, preset
from palm.spec.parameters import parameters


def millions(config: PaLMConfig, *, with_norms: bool) -> float:
    rows = parameters(config).values()
    return sum(row.size for row in rows if with_norms or row.std is not None) / 1e6


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_parameter_table_in_both_backends(name):
    for backend in ("torch", "jax"):
        assert next(iter(parameters(preset(name).resolve(backend)))) == "embedding"


# Table 1 of the paper (layers, heads, d_model, parameters in 10^9); Chowdhery et al. count no norm scales.
@pytest.mark.parametrize(
    ("name", "depth", "heads", "dim", "billions"),
    [
        ("palm-8b", 32, 16, 4096, 8.63),
        ("palm-62b", 64, 32, 8192, 62.50),
        ("palm-540b", 118, 48, 18432, 540.35),
    ],
)
def test_the_papers_sizes_are_those_of_its_table(name, depth, heads, dim, billions):
    config = preset(name)
    assert (config.depth, config.heads, config.dim) == (depth, heads, dim)
    assert config.num_tokens == 256_000
    assert round(millions(config, with_norms=False) / 1e3, 2) == billions


@pytest.mark.parametrize(
    ("size", "count"),
    [("150m", 144_811_776), ("410m", 410_149_888), ("1b", 983_861_248), ("2b", 2_157_836_800)],
)
def test_the_public_weights_have_so_many_parameters(size, count):
    """The counts that palm-rlhf-pytorch's own models of these sizes have (tests/upstream)."""
    config = preset(f"conceptofmind/palm-{size}")
    assert sum(row.size for row in parameters(config).values()) == count
    assert (config.positions, config.xpos_base, config.norm, config.norm_eps) == (
        "xpos",
        512,
        "layernorm",
        1e-5,
    )


@pytest.mark.parametrize("name", ["palm-8b", "palm-62b", "palm-540b"])
def test_the_papers_models_have_its_architecture(name):
    config = preset(name)
    assert (config.positions, config.share_kv, config.tie_embeddings, config.init) == (
        "rotary",
        False,
        True,
        "paper",
    )
    assert (config.dim_head, config.ff_mult) == (256, 4)


def test_the_attention_of_540b_is_narrower_than_its_residual_stream():
    config = preset("palm-540b")
    table = parameters(config)
    assert table["blocks.0.attention.query"].shape == (18432, 48 * 256)
    assert table["blocks.117.attention.out"].shape == (48 * 256, 18432)
    assert config.inner_dim != config.dim


@pytest.mark.parametrize(("name", "low", "high"), [("tiny", 0.15, 0.25), ("small", 4.5, 6.5)])
def test_the_byte_level_sizes(name, low, high):
    config = preset(name)
    assert config.num_tokens == 256
    assert not config.is_resolved
    assert all(
        low < millions(config.resolve(backend), with_norms=True) < high for backend in ("torch", "jax")
    )


def test_the_originals_are_their_readmes_example():
    for name in PRESETS:
        if name.startswith("palm_"):
            config = preset(name)
            assert config.is_resolved
            assert (config.num_tokens, config.dim, config.depth) == (20_000, 512, 12)
            assert (config.heads, config.dim_head, config.ff_mult, config.init) == (8, 64, 4, "reference")


def test_the_eps_that_palm_jax_lite_adds_to_a_sum_is_spread_over_the_mean():
    config = preset("palm_jax.palm_lite")
    assert (config.norm_eps, config.norm_eps_mode) == (1e-5 / 512, "add")


def test_each_backends_default_is_the_original_of_that_framework():
    for backend, name in (("torch", "palm_pytorch.palm_lite"), ("jax", "palm_jax.palm")):
        open_config = PaLMConfig(num_tokens=20_000, dim=512, depth=12, init="reference")
        assert open_config.resolve(backend) == preset(name)


def test_fields_can_be_changed_by_name():
    config = preset("small", depth=3, positions="rotary")
    assert (config.depth, config.positions, config.dim) == (3, "rotary", preset("small").dim)
    assert preset("small").depth != 3


def test_an_unknown_preset_is_answered_with_those_there_are():
    with pytest.raises(ConfigError) as raised:
        preset("palm-9b")
    assert_explains(raised, "preset must be one of", *PRESETS, "preset='palm-9b'", "Choose one")


@pytest.mark.parametrize(("change", "words"), [({"width": 3}, "width=3"), ({"dim": 0}, "dim=0")])
def test_an_unknown_field_or_a_bad_value_is_a_config_error(change, words):
    with pytest.raises(ConfigError, match=words):
        preset("tiny", **change)


def test_the_presets_cannot_be_changed():
    with pytest.raises(TypeError):
        PRESETS["tiny"] = preset("small")  # type: ignore[index]
