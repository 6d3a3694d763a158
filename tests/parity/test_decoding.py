"""Decoding with a cache in both wings: against the whole pass, each other, and the rules of sampling."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from cases import draw_tokens, draw_weights, small

import palm
from palm import jax_impl, torch_impl
from palm.spec.sampling import Sampling
from palm.torch_impl.weights import to_tensor

WINGS = {"torch": torch_impl, "jax": jax_impl}
LENGTHS = np.array([1, 9, 14])
NEW = 20


def models(dtype: str, **choices: Any) -> dict[str, Any]:
    torch_model = palm.build(small(**choices), backend="torch", dtype=dtype)
    return {"torch": torch_model, "jax": palm.convert(torch_model, backend="jax")}


def padded(tokens: np.ndarray, width: int = 16) -> np.ndarray:
    """Each row's prompt, and whatever comes behind it: nothing may look there."""
    prompts = np.full((len(tokens), width), 12)
    for row, length in enumerate(LENGTHS):
        prompts[row, :length] = tokens[row, :length]
    return prompts


def decoded(wing: Any, model: Any, tokens: np.ndarray, lengths: np.ndarray = LENGTHS) -> np.ndarray:
    """Logits at each position from the prompts' last one on: (steps, b, v)."""
    decoder = wing.Decoder(model, padded(tokens), lengths, 64)
    found = []
    for step in range(NEW):
        found.append(np.array(decoder.logits.tolist()))
        decoder.feed(tokens[np.arange(len(tokens)), lengths + step])
    return np.stack(found)


def whole(model: Any, tokens: np.ndarray) -> np.ndarray:
    logits = palm.activations(model, tokens)["logits"]
    return np.stack([logits[np.arange(len(tokens)), LENGTHS - 1 + step] for step in range(NEW)])


@pytest.mark.sampled(6)
@pytest.mark.parametrize("share_kv", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("positions", ["alibi", "rotary", "xpos"])
@pytest.mark.parametrize("qk_norm", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize("wing", WINGS)
def test_cached_logits_are_those_of_the_whole_forward_pass(wing, qk_norm, positions, share_kv):
    choices = {"positions": positions, "share_kv": share_kv, "qk_norm": qk_norm, "xpos_base": 3.0}
    with jax.enable_x64(True):
        config = small(**choices, heads=6)
        model = palm.from_numpy(config, draw_weights(config), backend=wing)
        tokens = draw_tokens(model.config, 3, 14 + NEW)
        exact = whole(model, tokens)
        found = decoded(WINGS[wing], model, tokens)
        assert np.abs(found - exact).max() <= 1e-12
        # One position off, and the cache's bias or rotation would be another's.
        shifted = decoded(WINGS[wing], model, tokens, np.maximum(LENGTHS - 1, 1))
        assert np.abs(shifted - exact).max() > 1e-3


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0}, {"temperature": 0.7, "top_k": 3, "top_p": 0.9, "min_p": 0.05}]
)
@pytest.mark.parametrize("positions", ["alibi", "rotary"])
def test_both_wings_write_the_same_tokens(positions, options):
    pair = models("float32", positions=positions)
    prompts = [[1], [2, 3, 4], list(range(13))]
    by_torch, by_jax = (palm.generate(pair[wing], prompts, max_new_tokens=24, **options) for wing in WINGS)
    for one, other in zip(by_torch, by_jax, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
    if options != {"temperature": 0}:
        again = palm.generate(pair["torch"], prompts, max_new_tokens=24, seed=1, **options)
        assert [one.tokens.tolist() for one in again] != [one.tokens.tolist() for one in by_torch]


def test_a_prompt_is_continued_alike_alone_and_in_a_batch():
    model = models("float32")["torch"]
    alone = palm.generate(model, [1, 2, 3], max_new_tokens=20)
    batch = palm.generate(model, [[1, 2, 3], list(range(12))], max_new_tokens=20)
    assert alone.tokens.tolist() == batch[0].tokens.tolist()


def test_log_probabilities_are_the_models_own():
    model = palm.build(small(), backend="torch", dtype="float64")
    prompt = [1, 2, 3]
    found = palm.generate(model, prompt, max_new_tokens=10, temperature=0.5, top_k=2)
    logits = palm.activations(model, np.array([*prompt, *found.tokens]))["logits"][2:-1]
    exact = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(found.logprobs, exact[np.arange(10), found.tokens], rtol=1e-12)


def chosen(wing: Any, logits: np.ndarray, noise: np.ndarray, **options: Any) -> np.ndarray:
    array = torch.from_numpy if wing is torch_impl else jnp.asarray
    return np.asarray(wing.choose(array(logits), array(noise), Sampling(**options))[0])


def kept(wing: Any, logits: list[float], **options: Any) -> set[int]:
    """Every token that can be drawn: each in turn is given overwhelming noise."""
    rows = np.tile(np.array(logits, np.float32), (len(logits), 1))
    noise = np.where(np.eye(len(logits)) > 0, 1e6, 0.0).astype(np.float32)
    return {int(token) for token in chosen(wing, rows, noise, **options)}


@pytest.mark.parametrize("wing", WINGS.values(), ids=WINGS)
def test_the_filters_keep_exactly_what_they_say(wing):
    logits = list(np.log([0.4, 0.3, 0.2, 0.05, 0.05]))
    assert kept(wing, logits) == {0, 1, 2, 3, 4}
    assert kept(wing, logits, top_k=4) == {0, 1, 2, 3}  # of two equal ones the lower id: exactly k
    assert kept(wing, logits, top_k=1) == {0}
    assert kept(wing, logits, top_k=99) == {0, 1, 2, 3, 4}
    assert kept(wing, logits, top_p=0.39) == {0}
    assert kept(wing, logits, top_p=0.41) == {0, 1}
    assert kept(wing, logits, top_p=1.0) == {0, 1, 2, 3, 4}
    assert kept(wing, logits, min_p=0.45) == {0, 1, 2}
    assert kept(wing, logits, top_k=2, top_p=0.5) == {0}  # 0.4/0.7 of what top_k left reaches 0.5
    assert kept(wing, logits, temperature=0) == {0}


@pytest.mark.parametrize("wing", WINGS.values(), ids=WINGS)
def test_tokens_that_top_k_rejects_are_never_drawn_even_from_negative_logits(wing):
    """A published `select_top_k` sets what it rejects to 0, which beats every negative logit."""
    logits = np.tile(np.array([-5.0, -6.0, -7.0, -8.0], np.float32), (1000, 1))
    noise = np.random.default_rng(0).gumbel(size=logits.shape).astype(np.float32)
    assert set(chosen(wing, logits, noise, top_k=2).tolist()) == {0, 1}


@pytest.mark.parametrize("wing", WINGS.values(), ids=WINGS)
def test_draws_have_the_models_probabilities(wing):
    p = np.array([0.5, 0.3, 0.15, 0.05])
    count = 40_000
    logits = np.tile(np.log(p).astype(np.float32), (count, 1))
    noise = np.random.default_rng(0).gumbel(size=logits.shape).astype(np.float32)
    shares = np.bincount(chosen(wing, logits, noise), minlength=4) / count
    assert np.all(np.abs(shares - p) < 4 * np.sqrt(p * (1 - p) / count))


def test_the_cache_is_one_key_head_and_half_of_that_where_keys_are_values():
    for positions, share_kv, caches in (
        ("alibi", True, 1),
        ("rotary", True, 2),
        ("xpos", True, 2),
        ("alibi", False, 2),
    ):
        pair = models("float32", positions=positions, share_kv=share_kv, heads=6)
        for wing, model in pair.items():
            decoder = WINGS[wing].Decoder(model, np.zeros((3, 8), int), np.array([1, 2, 8]), 64)
            state = decoder if wing == "torch" else decoder._state
            keys, values = (state._keys, state._values) if wing == "torch" else (state.keys, state.values)
            assert np.shape(keys) == (2, 3 * 64, 4)
            assert (values is keys or values == [None, None]) == (caches == 1)


def test_text_is_streamed_and_ends_before_its_stop():
    config = palm.preset("tiny", depth=1).resolve("jax")
    model = palm.build(config, backend="torch")
    pieces: list[str] = []
    free = palm.generate(model, "ab", max_new_tokens=60, on_text=lambda row, piece: pieces.append(piece))
    assert "".join(pieces) == free.text
    assert free.finish == "length"
    stop = free.text[20:22]
    ended = palm.generate(model, "ab", max_new_tokens=60, stop=[stop])
    assert ended.finish == "stop"
    assert ended.text == free.text[: free.text.index(stop)]
    assert palm.generate(model, stop, max_new_tokens=1, stop=[stop]).finish == "length"  # not in the prompt
    by_id = palm.generate(model, "ab", max_new_tokens=60, stop=[int(free.tokens[5])])
    assert by_id.finish == "stop"
    assert len(by_id.tokens) == free.tokens.tolist().index(free.tokens[5]) + 1


def packed(wing: Any, weight: np.ndarray) -> Any:
    if wing is torch_impl:
        return torch_impl.decode.pack(torch.from_numpy(weight), "int8")
    return jax_impl.decode.pack(jnp.asarray(weight), "int8", 1, "cpu")


@pytest.mark.parametrize("wing", WINGS.values(), ids=WINGS)
def test_int8_keeps_each_weight_to_half_a_step_of_its_column(wing):
    weight = np.random.default_rng(0).standard_normal((7, 32)).astype(np.float32)
    weight[3], weight[4, 5] = 0.0, 90.0  # a column of nothing, and one with an outlier
    matrix = packed(wing, weight)
    values, scale = np.asarray(matrix.values, np.float64), np.asarray(matrix.scale, np.float64)
    assert np.asarray(matrix.values).dtype == np.int8
    assert np.abs(values).max(1).tolist() == [127, 127, 127, 0, 127, 127, 127]
    error = np.abs(values * scale[:, None] - weight)
    assert (error <= 0.5 * scale[:, None] * (1 + 1e-5)).all()
    assert error.max() > 0.4 * scale.max()  # or it would not be eight bits
    other = packed(jax_impl if wing is torch_impl else torch_impl, weight)
    np.testing.assert_array_equal(values, np.asarray(other.values))
    x = np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)
    product = np.asarray(matrix.multiply(torch.from_numpy(x) if wing is torch_impl else jnp.asarray(x)))
    exact = x.astype(np.float64) @ (values * scale[:, None]).T
    assert np.abs(product - exact).max() <= 1e-6 * np.abs(exact).max()


@pytest.mark.parametrize("wing", WINGS.values(), ids=WINGS)
def test_int8_of_bfloat16_is_rounded_once(wing):
    """A scale or a product rounded to bfloat16 on the way would double the error."""
    draws = np.random.default_rng(0)
    weight, x = (draws.standard_normal(shape).astype(jnp.bfloat16) for shape in ((512, 256), (4, 256)))
    if wing is torch_impl:
        matrix = torch_impl.decode.pack(to_tensor(weight), "int8")
        product = matrix.multiply(to_tensor(x)).double().numpy()
    else:
        matrix = jax_impl.decode.pack(jnp.asarray(weight), "int8", 1, "cpu")
        product = np.asarray(matrix.multiply(jnp.asarray(x)), np.float64)
    assert np.asarray(matrix.scale).dtype == np.float32
    exact = (
        x.astype(np.float64)
        @ (np.asarray(matrix.values, np.float64) * np.asarray(matrix.scale, np.float64)[:, None]).T
    )
    error = np.sqrt(np.mean((product - exact) ** 2) / np.mean(exact**2))
    once = np.sqrt(np.mean((exact.astype(jnp.bfloat16).astype(np.float64) - exact) ** 2) / np.mean(exact**2))
    assert error <= 1.1 * once


@pytest.mark.parametrize("wing", WINGS.values(), ids=WINGS)
def test_int8_of_columns_too_small_to_scale_is_nothing_rather_than_noise(wing):
    """XLA on a CPU takes numbers below 1e-38 for 0, and would divide by such a scale."""
    weight = np.full((4, 8), 1.0, np.float32)
    weight[0], weight[1], weight[2] = 0.0, 1e-39, 1e-36
    if wing is torch_impl:
        matrix = torch_impl.decode.pack(torch.from_numpy(weight), "int8")
    else:
        matrix = jax.jit(lambda weight: jax_impl.decode.pack(weight, "int8", 1, "cpu"))(jnp.asarray(weight))
    values, scale = np.asarray(matrix.values, np.float64), np.asarray(matrix.scale, np.float64)
    assert (scale >= np.finfo(np.float32).tiny).all()
    assert np.abs(values * scale[:, None] - weight)[:3].max() <= np.finfo(np.float32).tiny


def test_int8_takes_an_output_matrix_however_it_lies_in_memory():
    model = models("float32")["torch"]
    expected = palm.generate(model, [1, 2], max_new_tokens=4, weights="int8", temperature=0)
    turned = {
        name: weight.mT.contiguous().mT if weight.ndim > 1 else weight
        for name, weight in model.state_dict().items()
    }
    model.load_state_dict(turned, assign=True)
    assert not model.embedding.weight.is_contiguous()
    again = palm.generate(model, [1, 2], max_new_tokens=4, weights="int8", temperature=0)
    assert list(again.tokens) == list(expected.tokens)


@pytest.mark.parametrize("wing", WINGS)
def test_a_decoder_refuses_to_outgrow_its_cache(wing):
    """The longest sequence would go on in the cache of the next one, and nothing would tell."""
    model = models("float32")[wing]
    tokens = draw_tokens(model.config, 2, 16)
    with pytest.raises(
        palm.ConfigError, match=r"size must be at least the tokens of the prompts, 16; got size=15"
    ):
        WINGS[wing].Decoder(model, tokens, np.array([16, 5]), 15)
    decoder = WINGS[wing].Decoder(model, tokens, np.array([16, 5]), 18)
    decoder.feed(tokens[:, 0])
    decoder.next(None, Sampling(temperature=0))
    for grow in (lambda: decoder.feed(tokens[:, 0]), lambda: decoder.next(None, Sampling(temperature=0))):
        with pytest.raises(palm.ConfigError, match=r"got size=18 and one more"):
            grow()


@pytest.mark.parametrize("weights", ["int8", None])
def test_a_weight_turned_for_many_rows_multiplies_as_it_would_for_one(weights):
    draws = np.random.default_rng(0)
    weight, x = (jnp.asarray(draws.standard_normal((rows, 32)), jnp.float32) for rows in (7, 3))
    platform = jax.default_backend()
    one, many = (jax_impl.decode.pack(weight, weights, batch, platform) for batch in (1, 3))
    assert one.values.shape == (7, 32)
    assert many.values.shape == ((32, 7) if platform == "cpu" else (7, 32))
    exact = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    close = 1e-6 if weights is None else 1e-2
    for matrix in (one, many):
        assert np.abs(matrix.multiply(x) - exact).max() <= close * np.abs(exact).max()


@pytest.mark.whole
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("wing", WINGS)
def test_int8_serves_every_dtype_and_width(wing, dtype):
    """Widths that are no multiples of 16: a kernel for bfloat16 reads past the end of their rows."""
    with jax.enable_x64(True):
        model = models(dtype, dim=12, heads=3)[wing]
        tokens = draw_tokens(model.config, 3, 15)
        found = {}
        for weights in ("int8", None):
            decoder = WINGS[wing].Decoder(model, padded(tokens), LENGTHS, 64, weights)
            decoder.feed(tokens[:, 14])
            found[weights] = np.array(decoder.logits.tolist())
    assert 0 < np.abs(found["int8"] - found[None]).max() < 0.1 * np.abs(found[None]).max()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("positions", ["alibi", "rotary"])
def test_both_wings_decode_alike_from_int8_and_not_as_from_floats(positions):
    pair = models("float32", positions=positions, share_kv=False)
    tokens = draw_tokens(pair["torch"].config, 3, 14 + NEW)

    def last(wing: str, weights: str | None) -> np.ndarray:
        decoder = WINGS[wing].Decoder(pair[wing], padded(tokens), LENGTHS, 64, weights)
        for step in range(NEW):
            decoder.feed(tokens[np.arange(3), LENGTHS + step])
        return decoder.fetch(decoder.logits)

    one, other, exact = last("torch", "int8"), last("jax", "int8"), last("torch", None)
    assert np.abs(one - other).max() <= 1e-5 * np.abs(exact).max()
    assert 1e-4 < np.abs(one - exact).max() / np.abs(exact).max() < 0.05


def test_generate_refuses_weights_it_does_not_know():
    with pytest.raises(
        palm.ConfigError, match=r"weights must be one of int8, or left out; got weights='int4'"
    ):
        palm.generate(models("float32")["torch"], [1], weights="int4")
