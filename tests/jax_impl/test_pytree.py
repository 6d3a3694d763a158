"""A JAX model is a tree of parameters, and nothing else is an array."""

import io

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ARCHITECTURES, architecture_id, assert_same_bits, draw_weights, small

import palm
from palm.spec.parameters import parameters

every_architecture = pytest.mark.parametrize("choices", ARCHITECTURES[::5], ids=architecture_id)


@every_architecture
def test_every_leaf_is_a_parameter_of_the_table_and_blocks_are_stacked(choices):
    config = small(**choices)
    leaves = jax.tree.leaves(palm.build(config, backend="jax"))
    expected = {}
    for row in parameters(config).values():
        stacked = row.kind.startswith("blocks.")
        expected[row.kind] = (config.depth, *row.shape) if stacked else row.shape
    assert sorted(leaf.shape for leaf in leaves) == sorted(expected.values())
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)


@every_architecture
def test_no_array_is_static(choices):
    model = palm.build(small(**choices), backend="jax")
    arrays, static = eqx.partition(model, eqx.is_array)
    assert jax.tree.leaves(static) == []
    assert len(jax.tree.leaves(arrays)) == len(jax.tree.leaves(model))
    # An array hidden in a static field would be neither hashable nor equal to another.
    structure = jax.tree.structure(model)
    other = jax.tree.structure(palm.build(small(**choices), backend="jax", seed=1))
    assert (hash(structure), structure) == (hash(other), other)


@pytest.mark.parametrize(
    "change",
    [
        {"norm_eps": 0.5},
        {"init": "reference"},
        {"rope_theta": 3.0},
        {"xpos_base": 3.0},
        {"positions": "rotary"},
    ],
)
def test_models_of_different_functions_have_different_structures(change):
    """What jit compares: equal shapes alone must not make one function stand in for another."""
    structures = [jax.tree.structure(palm.build(small(**c), backend="jax")) for c in ({}, change)]
    assert structures[0] != structures[1]
    textbook = palm.build(small(), backend="jax", attention="textbook")
    assert jax.tree.structure(textbook) not in structures


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_go_in_and_come_out_bit_for_bit(dtype):
    config = small(depth=3, share_kv=False, tie_embeddings=False)
    weights = draw_weights(config, dtype=dtype)
    model = palm.from_numpy(config, weights, backend="jax")
    assert palm.dtype_of(model) == dtype
    assert_same_bits(palm.to_numpy(model), weights)
    assert list(palm.to_numpy(model)) == list(parameters(config))
    for i in range(3):
        query = model.blocks.attention.query.weight[i]
        assert np.array_equal(query, weights[f"blocks.{i}.attention.query"])


def test_float64_weights_go_in_and_come_out_bit_for_bit():
    weights = draw_weights(small())
    with jax.enable_x64(True):
        model = palm.from_numpy(small(), weights, backend="jax")
        assert palm.dtype_of(model) == "float64"
        assert_same_bits(palm.to_numpy(model), weights)


def test_arrays_in_and_out_are_copies():
    weights = draw_weights(small(), dtype="float32")
    kept = {name: array.copy() for name, array in weights.items()}
    model = palm.from_numpy(small(), weights, backend="jax")
    for arrays in (weights, palm.to_numpy(model)):
        for array in arrays.values():
            array[:] = 0
    assert_same_bits(palm.to_numpy(model), kept)


def test_a_tree_map_gives_a_model_again(model):
    doubled = jax.tree.map(lambda leaf: 2 * leaf, model)
    assert palm.config_of(doubled) == palm.config_of(model)
    before = palm.to_numpy(model)
    assert all(np.array_equal(array, 2 * before[name]) for name, array in palm.to_numpy(doubled).items())


def test_one_weight_can_be_replaced(model):
    zeros = jnp.zeros_like(model.norm.weight)
    changed = palm.to_numpy(eqx.tree_at(lambda m: m.norm.weight, model, zeros))
    before = palm.to_numpy(model)
    assert [name for name in changed if not np.array_equal(changed[name], before[name])] == ["norm"]


def test_equinox_writes_and_reads_the_leaves(model, config):
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, model)
    file.seek(0)
    again = eqx.tree_deserialise_leaves(file, palm.build(config, backend="jax", seed=1))
    assert_same_bits(palm.to_numpy(again), palm.to_numpy(model))


def test_a_checkpoint_brings_back_the_model(tmp_path, model, config):
    again = palm.load(palm.save(model, tmp_path / "checkpoint"), backend="jax")
    assert jax.tree.structure(again) == jax.tree.structure(model)
    assert_same_bits(palm.to_numpy(again), palm.to_numpy(model))
    narrow = palm.load(tmp_path / "checkpoint", backend="jax", dtype="bfloat16")
    assert np.array_equal(narrow.norm.weight, model.norm.weight.astype(jnp.bfloat16))
