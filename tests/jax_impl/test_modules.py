"""Each module is a function of arrays by itself, and made of a config and a key as Equinox's own are."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import small

import palm
from palm import ConfigError, PaLMConfig
from palm.jax_impl import Attention, Block, FeedForward, Linear, Norm, PaLM
from palm.spec.parameters import parameters
from palm.spec.taps import BLOCK_TAPS, tap_names

CONFIGS = [
    small(),
    small(positions="rotary", norm="layernorm", share_kv=False, tie_embeddings=False),
    small(positions="xpos", qk_norm=True),
]
TOKENS = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int32)
KEY = jax.random.key(0)


@pytest.fixture(params=CONFIGS, ids=["palm_pytorch", "the opposite", "xPos"])
def model(request):
    return palm.build(request.param, backend="jax")


def block_of(model, i):
    return jax.tree.map(lambda leaf: leaf[i], model.blocks)


@pytest.mark.whole
def test_each_module_called_alone_gives_the_tap_of_the_whole_pass(model):
    """One operation at a time: compiled together, operations may round otherwise than alone."""
    with jax.disable_jit():
        taps = model.activations(TOKENS)
        positions = model.positions(TOKENS.shape[1], taps["embed"])
        assert np.array_equal(model.embedding(TOKENS), taps["embed"])
        x = taps["embed"]
        for i in range(model.config.depth):
            block, of = block_of(model, i), {name: taps[f"blocks.{i}.{name}"] for name in BLOCK_TAPS}
            y = of["norm"]
            assert np.array_equal(block.norm(x), y)
            assert np.array_equal(block.attention(y, *positions), of["attention_out"])
            assert np.array_equal(block.feedforward(y), of["feedforward_out"])
            assert np.array_equal(block(x, *positions), of["out"])
            assert not np.array_equal(block.attention(x, *positions), of["attention_out"])
            x = of["out"]
        assert np.array_equal(model.norm(x), taps["norm"])
        assert np.array_equal(model.logits(taps["norm"]), taps["logits"])


@pytest.mark.sampled(1)
def test_what_is_measured_is_what_runs(model):
    """The compiled program that gives the taps has the logits of the one that does not."""
    taps = model.activations(TOKENS)
    assert tuple(taps) == tap_names(model.config.depth)
    assert np.array_equal(taps["logits"], model(TOKENS))
    assert not np.array_equal(taps["logits"], block_changed(model)(TOKENS))


def block_changed(model):
    return eqx.tree_at(lambda m: m.blocks.attention.out.weight, model, replace_fn=lambda w: w.at[1].mul(1.01))


@pytest.mark.sampled(1)
def test_a_blocks_tap_sees_every_value_and_may_replace_it(model):
    x, block = model.embedding(TOKENS), block_of(model, 0)
    positions, seen = model.positions(TOKENS.shape[1], x), []

    def record(name, value):
        seen.append(name)
        return value

    out = block(x, *positions, tap=record)
    assert tuple(seen) == BLOCK_TAPS
    assert np.array_equal(out, block(x, *positions))
    for replaced in BLOCK_TAPS:
        other = block(x, *positions, tap=lambda name, value, at=replaced: 2 * value if name == at else value)
        assert not np.array_equal(other, out), replaced


@pytest.mark.sampled(1)
def test_a_model_of_a_key_is_shaped_like_one_that_is_built_and_computes(model):
    drawn = PaLM(model.config, key=KEY)
    assert jax.tree.structure(drawn) == jax.tree.structure(model)
    shapes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(m)] for m in (drawn, model)]
    assert shapes[0] == shapes[1]
    assert jnp.isfinite(drawn(TOKENS)).all()
    assert not np.array_equal(drawn(TOKENS), model(TOKENS))
    assert not np.array_equal(drawn(TOKENS), PaLM(model.config, key=jax.random.key(1))(TOKENS))


@pytest.mark.parametrize("init", ["paper", "reference"])
def test_a_keys_weights_have_the_tables_deviations_and_no_two_are_alike(init):
    config = PaLMConfig(
        num_tokens=500, dim=64, depth=2, heads=4, dim_head=16, tie_embeddings=False, init=init
    ).resolve("jax")
    arrays = palm.to_numpy(PaLM(config, key=KEY))
    for name, row in parameters(config).items():
        if row.std is None:
            assert (arrays[name] == 1).all(), name
        else:
            # Of N(0, std²): the estimate of a deviation from k numbers is off by std/sqrt(2k).
            assert abs(arrays[name].std() / row.std - 1) < 5 / (2 * row.size) ** 0.5, name
            assert abs(arrays[name].mean() / row.std) < 5 / row.size**0.5, name
    starts = [array.ravel()[:4].tobytes() for name, array in arrays.items() if "norm" not in name]
    assert len(set(starts)) == len(starts)


def test_every_module_is_made_as_equinoxs_own_are():
    config = small()
    y = jnp.ones((3, config.dim))
    assert Norm(config)(y).shape == y.shape
    assert Linear(config.dim, 5, key=KEY)(y).shape == (3, 5)
    assert FeedForward(config, key=KEY)(y).shape == y.shape
    slopes = jnp.ones(config.heads)
    assert Attention(config, "textbook", key=KEY)(y, None, slopes).shape == y.shape
    assert Block(config, "textbook", dtype=jnp.bfloat16, key=KEY).feedforward.up.weight.dtype == jnp.bfloat16


def test_a_constructor_refuses_what_it_cannot_use():
    with pytest.raises(ConfigError, match="attention must be one of textbook, blockwise"):
        PaLM(small(), attention="flash", key=KEY)
    with pytest.raises(ConfigError, match="config must be resolved"):
        PaLM(PaLMConfig(num_tokens=8, dim=6, depth=1), key=KEY)


def test_shapes_are_built_without_weights():
    config = palm.preset("palm-540b")
    for hollow in (
        jax.eval_shape(lambda: palm.build(config, backend="jax", dtype="bfloat16")),
        eqx.filter_eval_shape(palm.build, config, backend="jax", dtype="bfloat16"),
    ):
        leaves = jax.tree.leaves(hollow)
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
        assert sum(leaf.size for leaf in leaves) == sum(
            row.size for row in parameters(hollow.config).values()
        )
        assert hollow.config.depth == 118
        tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32)
        logits = jax.eval_shape(lambda model, tokens: model(tokens), hollow, tokens)
        assert logits.shape == (2, 16, config.num_tokens)


def test_a_model_built_inside_jit_has_the_bits_of_its_seed(model):
    built = jax.jit(lambda: palm.build(model.config, backend="jax"))()
    assert jax.tree.structure(built) == jax.tree.structure(model)
    assert all(map(np.array_equal, jax.tree.leaves(built), jax.tree.leaves(model)))


def test_a_model_prints_its_config_once_and_in_a_screenful(model):
    text = repr(model)
    assert text.count("PaLMConfig(") == 1
    assert text.count("query=Linear(weight=f32") == 1
    assert len(text.splitlines()) <= 60
