import numpy as np
import pytest
from support import DTYPES, HEADS, LENGTHS, bias_of, read, widened

import palm
from palm.backends import wing_of
from palm.spec import functions
from palm.spec.positions import alibi_slopes, rotary_table


def config(heads: int = 1, dim_head: int = 16) -> palm.PaLMConfig:
    return palm.PaLMConfig(num_tokens=8, dim=16, depth=1, heads=heads, dim_head=dim_head)


def bias(cfg, length):
    def evaluate(wing, anchor):
        where = {"device": anchor.device} if wing.__name__.endswith("torch_impl") else {}
        return bias_of(wing, wing.alibi_slopes(cfg, dtype=anchor.dtype, **where), length)

    return evaluate


@pytest.mark.sampled(4)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("heads", HEADS)
def test_alibi_bias_is_bit_identical_and_rounded_once(heads, length, platform):
    cfg = config(heads)
    reading = read(bias(cfg, length), [np.zeros(1)], "float32", platform)
    slopes = alibi_slopes(heads).astype(np.float32)
    distance = (np.arange(length)[:, None] - np.arange(length)[None, :]).astype(np.float32)
    expected = np.where(distance >= 0, -slopes[:, None, None] * distance, -np.inf)
    np.testing.assert_array_equal(reading.torch, expected)
    np.testing.assert_array_equal(reading.jax, expected)
    exact = functions.position_bias(length, cfg.resolve("torch"))
    np.testing.assert_array_equal(reading.torch_exact, exact)
    np.testing.assert_array_equal(reading.jax_exact, exact)


def test_alibi_distance_is_exact_in_bfloat16_models(platform):
    # Every distance up to n − 1 must come back exactly; bfloat16 itself cannot count beyond 256.
    cfg = palm.PaLMConfig(num_tokens=8, dim=16, depth=1, heads=1, dim_head=8).resolve("torch")
    for backend in ("torch", "jax"):
        model = palm.build(cfg, backend=backend, dtype="bfloat16")
        _, slopes = model.positions(1000, model.embedding.weight)
        last = np.asarray(bias_of(wing_of(model), slopes, 1000))[0, -1]
        assert last.dtype == np.float32
        np.testing.assert_array_equal(-last / alibi_slopes(1)[0], np.arange(999, -1, -1))


def rotation(cfg):
    def evaluate(wing, x):
        wide = wing.position.widen(x)
        where = {"device": x.device} if wing.__name__.endswith("torch_impl") else {}
        return wing.rotate(x, wing.rotation_table(cfg, x.shape[-2], dtype=wide.dtype, **where))

    return evaluate


@pytest.mark.sampled(4)
@pytest.mark.parametrize("length", [*LENGTHS, 4096])
@pytest.mark.parametrize("dim_head", [2, 6, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_differs_by_rounding_only(dtype, dim_head, length, platform):
    cfg = config(dim_head=dim_head)
    arrays = [np.random.default_rng(2).standard_normal((2, length, dim_head))]
    reading = read(rotation(cfg), arrays, dtype, platform)
    assert not reading.faults(functions.rotate(*widened(arrays, dtype), cfg), dtype, roundings=3)


@pytest.mark.parametrize("fault", ["half-split", "theta", "shifted", "reversed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_wrong_rotary_is_caught(dtype, fault, platform):
    cfg = config()
    arrays = [np.random.default_rng(2).standard_normal((127, 16))]
    (x,) = widened(arrays, dtype)
    cos, sin = rotary_table(127, 16, 500.0 if fault == "theta" else cfg.rope_theta)
    if fault == "shifted":
        cos, sin = np.roll(cos, 1, 0), np.roll(sin, 1, 0)
    if fault == "reversed":
        sin = -sin
    a, b = (x[..., :8], x[..., 8:]) if fault == "half-split" else (x[..., 0::2], x[..., 1::2])
    turned = a * cos - b * sin, b * cos + a * sin
    joined = np.concatenate(turned, -1) if fault == "half-split" else np.stack(turned, -1).reshape(x.shape)
    assert read(rotation(cfg), arrays, dtype, platform).faults(joined, dtype, roundings=3)
