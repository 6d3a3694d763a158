import numpy as np
import pytest
from support import DTYPES, HEADS, LENGTHS, namespace, path_with_bias, read, widened

import palm
from palm import torch_impl
from palm.spec import functions

E = 10  # not dim / heads of anything here


def config(heads: int, positions: str) -> palm.PaLMConfig:
    plain = palm.PaLMConfig(num_tokens=8, dim=16, depth=1, heads=heads, dim_head=E, positions=positions)
    return plain.resolve("torch")


def inputs(heads: int, length: int) -> list[np.ndarray]:
    rng = np.random.default_rng(heads * 1000 + length)
    return [2 * rng.standard_normal((2, length, heads, E)), *rng.standard_normal((2, 2, length, E))]


def referee(q, k, v, cfg) -> np.ndarray:
    bias = functions.position_bias(q.shape[-3], cfg)
    scores = q.swapaxes(-2, -3) * E**-0.5 @ k[:, None].swapaxes(-1, -2) + bias
    return (functions.softmax(scores) @ v[:, None]).swapaxes(-2, -3)


def attend(cfg, path, change=None):
    def evaluate(wing, q, k, v):
        slopes = slopes_of(wing, cfg, q)
        if change is None:
            return wing.ATTENTION[path](q, k, v, slopes)
        return path_with_bias(wing, lambda bias: change(namespace(wing), bias))(q, k, v, slopes)

    return evaluate


def slopes_of(wing, cfg, q):
    if cfg.positions == "rotary":
        return None
    where = {"device": q.device} if wing is torch_impl else {}
    return wing.alibi_slopes(cfg, dtype=wing.norm.widen(q[:0]).dtype, **where)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("length", [*LENGTHS, 128, 257])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("positions", ["alibi", "rotary"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_blockwise_attention_differs_by_rounding_only(dtype, positions, heads, length, platform):
    cfg, arrays = config(heads, positions), inputs(heads, length)
    reading = read(attend(cfg, "blockwise"), arrays, dtype, platform)
    assert not reading.faults(referee(*widened(arrays, dtype), cfg), dtype, roundings=12)


@pytest.mark.sampled(3)
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
    assert not read(attend(cfg, "", lambda _, bias: bias), arrays, dtype, platform).faults(
        referee(*widened(arrays, dtype), cfg), dtype, roundings=12
    )
    reading = read(attend(cfg, "", FAULTS[fault]), arrays, dtype, platform)
    assert reading.faults(referee(*widened(arrays, dtype), cfg), dtype, roundings=12)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("positions", ["alibi", "rotary"])
@pytest.mark.parametrize("path", ["blockwise", "textbook"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_later_key_and_value_never_reach_an_earlier_query(dtype, path, positions, platform):
    cfg = config(3, positions)
    q, k, v = inputs(3, 127)
    before = read(attend(cfg, path), [q, k, v], dtype, platform)
    k[:, 100], v[:, 100] = 37.0, -41.0
    after = read(attend(cfg, path), [q, k, v], dtype, platform)
    for side in ("torch", "jax"):
        earlier = (getattr(reading, side)[:, :100] for reading in (before, after))
        np.testing.assert_array_equal(*earlier)
        assert (getattr(before, side)[:, 100:] != getattr(after, side)[:, 100:]).any()
