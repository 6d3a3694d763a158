"""Random numbers by (seed, name), and the weights made of them."""

import hashlib
import itertools
import math

import numpy as np
import pytest
from cases import DTYPES, assert_explains, small

from palm import ConfigError, preset
from palm.spec.initial import initial_value
from palm.spec.parameters import Parameter, numpy_dtype, parameters
from palm.spec.random import generator

# Of 12 draws, little-endian float64. If this changes, every seed ever written down means another model.
GOLDEN = {
    (0, "embedding"): "d78bda9bda521f454ec233cdcdc12c4d6055aa7eaae76dfc8429b77889ccc796",
    (7, "blocks.1.attention.query"): "b0cdae7ce18db7987b56dff7af0ef884351235674aebee54cab24cb618d7e8af",
}


def matrix(name: str, std: float = 1.0, shape: tuple[int, ...] = (3, 4)) -> Parameter:
    return Parameter(name, shape, ("embed", "ff"), std)


@pytest.mark.parametrize(("seed", "name"), GOLDEN)
def test_draws_have_not_drifted(seed, name):
    draws = initial_value(matrix(name), seed, "float64")
    assert hashlib.sha256(draws.astype("<f8").tobytes()).hexdigest() == GOLDEN[seed, name]


def test_the_same_seed_and_name_give_the_same_numbers_in_any_order():
    names = list(parameters(small()))
    forwards = {name: generator(3, name).standard_normal(8).tolist() for name in names}
    backwards = {name: generator(3, name).standard_normal(8).tolist() for name in reversed(names)}
    assert forwards == backwards


def test_every_name_and_every_seed_has_numbers_of_its_own():
    keys = itertools.product((0, 1, 2, 10**30), parameters(small()))
    draws = {generator(seed, name).standard_normal(4).tobytes() for seed, name in keys}
    assert len(draws) == 4 * len(parameters(small()))


def test_no_layer_starts_as_a_copy_of_another():
    """One of the originals draws every matrix of every layer from one key."""
    config = small(depth=4)
    values = {name: initial_value(row, 0, "float64") for name, row in parameters(config).items()}
    matrices = {name: value.ravel()[:8].tobytes() for name, value in values.items() if value.ndim > 1}
    # Their numbers, not only their shapes or scales: the same draws at another std would show here.
    rows = parameters(config)
    unscaled = {name: np.round(values[name].ravel()[:8] / rows[name].std, 9).tobytes() for name in matrices}
    assert len(set(matrices.values())) == len(set(unscaled.values())) == len(matrices)


@pytest.mark.parametrize("init", ["paper", "reference"])
def test_standard_deviations_are_those_of_the_table(init):
    config = preset("small", depth=1, init=init, tie_embeddings=False).resolve("jax")
    for row in parameters(config).values():
        if row.std is None:
            continue
        value = initial_value(row, 0, "float64")
        assert abs(value.std() / row.std - 1) < 5 / math.sqrt(2 * row.size), row.name
        assert abs(value.mean() / row.std) < 5 / math.sqrt(row.size), row.name


def test_a_matrix_starts_by_its_fan_in():
    square = initial_value(
        parameters(preset("small").resolve("jax"))["blocks.0.feedforward.down"], 0, "float64"
    )
    assert square.shape == (1024, 256)
    assert abs(square.std() * math.sqrt(1024) - 1) < 5 / math.sqrt(2 * square.size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_scales_start_at_one(dtype):
    value = initial_value(parameters(small())["norm"], 0, dtype)
    assert value.dtype == numpy_dtype(dtype)
    assert (value == 1).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrow_weights_are_the_float64_ones_rounded_to_nearest(dtype):
    row = matrix("embedding", std=0.02, shape=(50, 40))
    exact, narrow = initial_value(row, 0, "float64"), initial_value(row, 0, dtype)
    assert narrow.dtype == numpy_dtype(dtype)
    digits = {"float32": 24, "bfloat16": 8}[dtype]
    # Half a unit in the last place of a value in [2^k, 2^(k+1)) is 2^(k − digits).
    half_unit = np.exp2(np.floor(np.log2(np.abs(exact))) - digits)
    assert (np.abs(narrow.astype(np.float64) - exact) <= half_unit).all()
    assert not np.array_equal(narrow.astype(np.float64), exact)


@pytest.mark.parametrize("seed", [-1, True, 1.0, "0", None, np.float64(1), [0]])
def test_a_seed_must_be_a_whole_number_of_at_least_zero(seed):
    with pytest.raises(ConfigError) as raised:
        generator(seed, "embedding")
    assert_explains(raised, "seed must be an int of at least 0", f"seed={seed!r}", "Use 0, 1, 2")


def test_a_numpy_integer_is_the_same_seed():
    assert generator(np.int64(5), "a").random() == generator(5, "a").random()
