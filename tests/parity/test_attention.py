import numpy as np
import pytest
from support import DTYPES, HEADS, LENGTHS, namespace, read, widened

import palm
from palm import reference

E = 10  # not dim / heads of anything here


def config(heads: int, positions: str) -> palm.PaLMConfig:
    plain = palm.PaLMConfig(num_tokens=8, dim=16, depth=1, heads=heads, dim_head=E, positions=positions)
    return plain.resolve("torch")


def inputs(heads: int, length: int) -> list[np.ndarray]:
    rng = np.random.default_rng(heads * 1000 + length)
    return [2 * rng.standard_normal((2, heads, length, E)), *rng.standard_normal((2, 2, length, E))]


def referee(q, k, v, cfg) -> np.ndarray:
    scores = q * E**-0.5 @ k[:, None].swapaxes(-1, -2) + reference.position_bias(q.shape[-2], cfg)
    return reference.softmax(scores) @ v[:, None]


def attend(cfg, path, bias=None):
    def evaluate(wing, q, k, v):
        if cfg.positions == "rotary":
            return wing.ATTENTION[path](q, k, v, None)
        where = {"device": q.device} if wing.__name__.endswith("torch_impl") else {}
        term = wing.alibi_bias(cfg, q.shape[-2], dtype=wing.position.widen(q[:0]).dtype, **where)
        return wing.ATTENTION[path](q, k, v, term if bias is None else bias(namespace(wing), term))

    return evaluate


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("positions", ["alibi", "rotary"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_attention_differs_by_rounding_only(dtype, positions, heads, length, platform):
    cfg, arrays = config(heads, positions), inputs(heads, length)
    reading = read(attend(cfg, "fused"), arrays, dtype, platform)
    assert not reading.faults(referee(*widened(arrays, dtype), cfg), dtype, roundings=12)


@pytest.mark.parametrize("positions", ["alibi", "rotary"])
@pytest.mark.parametrize("heads", [1, 6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_textbook_attention_differs_by_rounding_only(dtype, positions, heads, platform):
    cfg, arrays = config(heads, positions), inputs(heads, 127)
    reading = read(attend(cfg, "textbook"), arrays, dtype, platform)
    assert not reading.faults(referee(*widened(arrays, dtype), cfg), dtype, roundings=12)


FAULTS = {
    "distances stretched by 1%": lambda xp, bias: bias * 1.01,
    "mask off by one": lambda xp, bias: xp.roll(bias, 1, -1),
    "slopes reversed": lambda xp, bias: xp.flip(bias, (0,)) if xp.__name__ == "torch" else bias[::-1],
    "mask missing": lambda xp, bias: xp.where(bias < -1e30, 0 * xp.zeros_like(bias), bias),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_wrong_bias_is_caught(dtype, fault, platform):
    cfg, arrays = config(6, "alibi"), inputs(6, 127)
    reading = read(attend(cfg, "textbook", FAULTS[fault]), arrays, dtype, platform)
    assert reading.faults(referee(*widened(arrays, dtype), cfg), dtype, roundings=12)


@pytest.mark.parametrize("positions", ["alibi", "rotary"])
@pytest.mark.parametrize("path", ["fused", "textbook"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_later_key_and_value_never_reach_an_earlier_query(dtype, path, positions, platform):
    cfg = config(3, positions)
    q, k, v = inputs(3, 127)
    before = read(attend(cfg, path), [q, k, v], dtype, platform)
    k[:, 100], v[:, 100] = 37.0, -41.0
    after = read(attend(cfg, path), [q, k, v], dtype, platform)
    for side in ("torch", "jax"):
        earlier = (getattr(reading, side)[..., :100, :] for reading in (before, after))
        np.testing.assert_array_equal(*earlier)
        assert (getattr(before, side)[..., 100:, :] != getattr(after, side)[..., 100:, :]).any()
