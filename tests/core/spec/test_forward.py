"""The referee, on cases that can be worked out by hand."""

import dataclasses
import math

import numpy as np
import pytest
from cases import ARCHITECTURES, ROOT, architecture_id, draw_tokens, draw_weights, small

from palm import ConfigError, TokenError, WeightsError
from palm.spec import forward, functions
from palm.spec.forward import Place
from palm.spec.parameters import numpy_dtype
from palm.spec.positions import alibi_slopes
from palm.spec.taps import tap_names

N = 5
every_architecture = pytest.mark.parametrize("choices", ARCHITECTURES, ids=architecture_id)


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-13, atol=1e-14)


@every_architecture
def test_no_token_sees_a_later_one_not_by_a_single_bit(choices):
    config = small(**choices)
    weights, tokens = draw_weights(config), draw_tokens(config, N)
    before = forward.activations(config, weights, tokens)
    for j in range(N):
        changed = tokens.copy()
        changed[j] = (tokens[j] + 1) % config.num_tokens
        after = forward.activations(config, weights, changed)
        for name in before:
            assert before[name][:j].tobytes() == after[name][:j].tobytes(), name
        assert not np.array_equal(before["logits"][j], after["logits"][j])


@pytest.mark.parametrize("batch", [(1,), (2,), (2, 3), (2, 1, 2)])
def test_sequences_in_a_batch_do_not_touch(batch):
    config = small(positions="rotary")
    weights, tokens = draw_weights(config), draw_tokens(config, *batch, N)
    together = forward.activations(config, weights, tokens)
    for place in np.ndindex(*batch):
        alone = forward.activations(config, weights, tokens[place])
        for name, tap in together.items():
            close(tap[place], alone[name])


@every_architecture
def test_taps_come_in_dataflow_order_with_the_shapes_of_their_widths(choices):
    config = small(**choices)
    taps = forward.activations(config, draw_weights(config), draw_tokens(config, 2, N))
    assert tuple(taps) == tap_names(config.depth)
    d, e, inner, f, v = config.dim, config.dim_head, config.inner_dim, config.ff_dim, config.num_tokens
    in_block = {"q": inner, "k": e, "v": e, "attention": inner, "feedforward": f}
    widths = {**in_block, "logits": v}
    for name, tap in taps.items():
        assert tap.shape == (2, N, widths.get(name.split(".")[-1], d)), name
        assert tap.dtype == np.float64


@every_architecture
def test_one_token_attends_to_itself_alone(choices):
    config = small(**choices)
    taps = forward.activations(config, draw_weights(config), draw_tokens(config, 1))
    for i in range(config.depth):
        v = taps[f"blocks.{i}.v"]
        close(taps[f"blocks.{i}.attention"], np.tile(v, config.heads))


def test_queries_of_zero_with_rotary_average_all_values_so_far():
    config = small(positions="rotary")
    weights = draw_weights(config)
    weights["blocks.0.attention.query"][:] = 0
    taps = forward.activations(config, weights, draw_tokens(config, N))
    v, attention = taps["blocks.0.v"], taps["blocks.0.attention"]
    for i in range(N):
        close(attention[i], np.tile(v[: i + 1].mean(0), config.heads))


def test_queries_of_zero_with_alibi_average_values_by_distance():
    config = small(positions="alibi")
    weights = draw_weights(config)
    weights["blocks.0.attention.query"][:] = 0
    taps = forward.activations(config, weights, draw_tokens(config, N))
    v = taps["blocks.0.v"]
    attention = taps["blocks.0.attention"].reshape(N, config.heads, config.dim_head)
    for h, slope in enumerate(alibi_slopes(config.heads)):
        for i in range(N):
            shares = np.array([math.exp(-slope * (i - j)) for j in range(i + 1)])
            close(attention[i, h], shares @ v[: i + 1] / shares.sum())


def test_a_slope_times_the_key_position_is_the_same_alibi():
    """Softmax does not see what a whole row shares: −m·(i − j) and +m·j differ by m·i."""
    config = small(positions="alibi")
    bias = functions.position_bias(N, config)
    scores = np.random.default_rng(0).standard_normal((config.heads, N, N))
    by_key = alibi_slopes(config.heads)[:, None, None] * np.arange(N)
    causal = np.tril(np.ones((N, N), bool))
    close(functions.softmax(scores + bias), functions.softmax(np.where(causal, scores + by_key, -np.inf)))


@pytest.mark.parametrize("positions", ["alibi", "rotary"])
def test_the_position_bias_forbids_every_later_key_and_no_other(positions):
    config = small(positions=positions)
    bias = functions.position_bias(N, config)
    assert bias.shape == (config.heads, N, N)
    assert (np.isneginf(bias) == np.triu(np.ones((N, N), bool), 1)).all()
    slopes = alibi_slopes(config.heads) if positions == "alibi" else np.zeros(config.heads)
    assert bias[:, 4, 1].tolist() == (-3 * slopes).tolist()


def test_softmax_rows_sum_to_one_whatever_the_scores():
    scores = np.random.default_rng(0).standard_normal((3, N, N)) * 300
    scores[0, 0] = -np.inf, -np.inf, 1e300, -1e300, 0
    shares = functions.softmax(scores)
    close(shares.sum(-1), np.ones((3, N)))
    assert (shares >= 0).all()
    assert shares[0, 0].tolist() == [0, 0, 1, 0, 0]


def test_softmax_by_hand():
    close(functions.softmax(np.log([1.0, 2.0, 5.0])), np.array([0.125, 0.25, 0.625]))


@every_architecture
def test_a_row_of_zeros_stays_zero_all_the_way(choices):
    config = small(**choices)
    weights = draw_weights(config)
    weights["embedding"][4] = 0
    taps = forward.activations(config, weights, np.array([4, 4, 4]))
    for name, tap in taps.items():
        assert not tap.any(), name


@pytest.mark.parametrize(
    ("norm", "mode", "eps", "expected"),
    [
        # Mean square of (1, 7) is 25; of (−3, 3), about their mean, 9.
        ("rmsnorm", "clamp", 1e-8, [1 / 5, 7 / 5]),
        ("rmsnorm", "clamp", 10.0, [1 / 10, 7 / 10]),
        ("rmsnorm", "add", 11.0, [1 / 6, 7 / 6]),
        ("layernorm", "clamp", 1e-8, [-1.0, 1.0]),
        ("layernorm", "clamp", 6.0, [-1 / 2, 1 / 2]),
        ("layernorm", "add", 7.0, [-3 / 4, 3 / 4]),
    ],
)
def test_norms_by_hand(norm, mode, eps, expected):
    config = small(norm=norm, norm_eps_mode=mode, norm_eps=eps)
    scale = np.array([2.0, 10.0])
    close(functions.normalise(np.array([[1.0, 7.0]]), scale, config), [expected] * scale)


def test_rotary_by_hand():
    # Pair 0 turns by 1 radian a position, pair 1 by θ^-1/2 = 1/2.
    config = small(positions="rotary", rope_theta=4.0)
    turned = functions.rotate(np.array([[1.0, 0, 0, 1]] * 2), config)
    close(turned[0], np.array([1, 0, 0, 1]))
    close(turned[1], np.array([math.cos(1), math.sin(1), -math.sin(0.5), math.cos(0.5)]))


def test_rotary_scores_depend_on_distance_alone():
    config = small(positions="rotary")
    q, k = np.random.default_rng(0).standard_normal((2, config.dim_head))
    turned_q, turned_k = (functions.rotate(np.tile(x, (9, 1)), config) for x in (q, k))
    scores = turned_q @ turned_k.T
    for distance in range(5):
        diagonal = np.diagonal(scores, -distance)
        close(diagonal, np.full_like(diagonal, diagonal[0]))


def test_rotary_turns_a_shared_key_but_not_the_value_of_the_same_tensor():
    config = small(positions="rotary", share_kv=True)
    weights = draw_weights(config)
    taps = forward.activations(config, weights, draw_tokens(config, N))
    projected = taps["blocks.0.norm"] @ weights["blocks.0.attention.key_value"]
    assert np.array_equal(taps["blocks.0.v"], projected)
    assert np.array_equal(taps["blocks.0.k"], functions.rotate(projected, config))
    assert not np.array_equal(taps["blocks.0.k"][1:], projected[1:])


def test_swiglu_by_hand():
    one = np.array([[1.0]])
    weights = {"feedforward.gate": 2 * one, "feedforward.up": 3 * one, "feedforward.down": 5 * one}
    taps = {"norm": one}
    at = Place(small(dim=1, ff_mult=1), weights, taps, np.zeros(1, int), "")
    taps["feedforward"] = forward.feedforward(at)
    swish = 2 / (1 + math.exp(-2))
    close(taps["feedforward"], 3 * swish * one)
    close(forward.feedforward_out(at), 15 * swish * one)


def test_the_block_adds_both_branches_to_its_input():
    config = small()
    taps = forward.activations(config, draw_weights(config), draw_tokens(config, N))
    branches = taps["blocks.1.attention_out"] + taps["blocks.1.feedforward_out"]
    close(taps["blocks.1.out"], taps["blocks.0.out"] + branches)


@pytest.mark.parametrize(("init", "scale"), [("paper", 6**-0.5), ("reference", 1.0)])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_the_scaled_product_with_the_tied_or_the_untied_matrix(tied, init, scale):
    config = small(tie_embeddings=tied, init=init)
    weights = draw_weights(config)
    taps = forward.activations(config, weights, draw_tokens(config, N))
    matrix = weights["embedding"].T if tied else weights["unembedding"]
    close(taps["logits"], taps["norm"] @ matrix * scale)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrow_weights_are_read_in_float64(dtype):
    config = small()
    narrow = draw_weights(config, dtype=dtype)
    wide = {name: array.astype(np.float64) for name, array in narrow.items()}
    assert narrow["embedding"].dtype == numpy_dtype(dtype)
    results = [forward.activations(config, w, np.arange(N))["logits"] for w in (narrow, wide)]
    assert np.array_equal(*results)


def test_what_does_not_fit_together_is_refused():
    config = small()
    weights = draw_weights(config)
    with pytest.raises(TokenError):
        forward.activations(config, weights, np.array([config.num_tokens]))
    with pytest.raises(WeightsError, match=r"miss norm\."):
        forward.activations(config, {n: a for n, a in weights.items() if n != "norm"}, np.array([1]))
    with pytest.raises(WeightsError, match="must be finite"):
        forward.activations(config, {**weights, "norm": weights["norm"] * np.nan}, np.array([1]))
    with pytest.raises(ConfigError, match="must be resolved"):
        forward.activations(dataclasses.replace(config, norm=None), weights, np.array([1]))


def test_the_referee_is_short_enough_to_read():
    lines = (ROOT / "src/palm/spec/forward.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 165
