"""Initial weights, drawn part by part: the same bits for any part, and normal numbers across tiles too."""

import hashlib
import math
from itertools import product

import numpy as np
import pytest
from cases import DTYPES, assert_explains, small

from palm import ConfigError
from palm.spec import initial
from palm.spec.initial import TILE, Initial, initial_value, initial_weights
from palm.spec.parameters import Parameter, parameters
from palm.spec.random import generator

# Of 150 × 70 draws in each way, little-endian float64. If one changes, every seed means another model.
GOLDEN = {
    "tiles": "9f4cd73c2c6edc3643bcd463911347558157176120dce7fb6e43527be3338556",
    "whole": "8fba511b30129c5c4d38f59713a9211b9f862ca133d5823ca0ff7401f7fd414a",
}


def matrix(*shape: int, name: str = "embedding", std: float = 1.0) -> Parameter:
    return Parameter(name, shape, ("embed", "ff"), std)


def numbers_of(*shape: int, seed: int = 0) -> np.ndarray:
    return initial_value(matrix(*shape), seed, "float64")


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.parametrize("draw", GOLDEN)
def test_draws_have_not_drifted(draw):
    draws = initial_value(matrix(150, 70), 3, "float64", draw)
    assert hashlib.sha256(draws.astype("<f8").tobytes()).hexdigest() == GOLDEN[draw]


@pytest.mark.parametrize("draw", initial.DRAWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_part_has_the_bits_of_the_whole(dtype, draw):
    rng = np.random.default_rng(0)
    row = matrix(150, 200, std=0.02)
    whole, parts = initial_value(row, 5, dtype, draw), Initial(row, 5, dtype, draw)
    for _ in range(20):
        at = tuple(slice(*sorted(rng.choice(size + 1, 2, replace=False))) for size in row.shape)
        assert parts[at].dtype == whole.dtype
        assert parts[at].tobytes() == whole[at].tobytes(), at


class Watched:
    """A generator that says where in its stream it drew how many numbers."""

    def __init__(self, seed, name):
        self._own, self.drawn = generator(seed, name), []
        self.bit_generator = self._own.bit_generator

    def standard_normal(self, shape):
        self.drawn.append((int(self.bit_generator.state["state"]["counter"][2]), shape))
        return self._own.standard_normal(shape)


def test_a_part_draws_the_tiles_it_touches_and_no_others(monkeypatch):
    watched = []
    monkeypatch.setattr(initial, "generator", lambda *key: watched.append(Watched(*key)) or watched[-1])
    part = Initial(matrix(18432, 256000), 0, "float32")[144:288, 768:1536]
    assert part.shape == (144, 768)
    places = [row * 4000 + column for row, column in product((2, 3, 4), range(12, 24))]
    assert watched[0].drawn == [(place, (TILE, TILE)) for place in places]
    # The negative control: drawn whole, it would be the matrix.
    assert Initial(matrix(200, 300), 0, "float32", "whole")[:1, :1].shape == (1, 1)
    assert watched[1].drawn == [(0, (200, 300))]


def test_weights_are_normal_across_tiles():
    draws = numbers_of(16 * TILE, 16 * TILE)
    n = draws.size
    assert abs(draws.mean()) < 5 / math.sqrt(n)
    assert abs(draws.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((draws**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((draws**4).mean() - 3) < 5 * math.sqrt(96 / n)
    # Each tile by itself, too: a tile of another scale would hardly show in all.
    tiles = draws.reshape(16, TILE, 16, TILE).swapaxes(1, 2).reshape(256, -1)
    assert np.abs(tiles.mean(1)).max() * TILE < 5
    assert np.abs(tiles.var(1) - 1).max() * TILE / math.sqrt(2) < 5


def neighbours(draws: np.ndarray) -> list[float]:
    """Correlations of each tile with the next one in its row, with the one below, and number by number."""
    return [
        correlation(draws[:, :-TILE], draws[:, TILE:]),
        correlation(draws[:-TILE], draws[TILE:]),
        correlation(draws[:, TILE - 1 : -1 : TILE], draws[:, TILE::TILE]),
        correlation(draws[TILE - 1 : -1 : TILE], draws[TILE::TILE]),
        correlation(draws[:, :-1], draws[:, 1:]),
    ]


def test_neighbouring_tiles_are_independent():
    assert max(map(abs, neighbours(numbers_of(8 * TILE, 8 * TILE)))) < 5 / math.sqrt(8 * 8 * TILE)
    # The negative control: tiles that all begin at the same counter are copies.
    first = Initial(matrix(8 * TILE, 8 * TILE), 0, "float64")[:TILE, :TILE]
    assert neighbours(np.tile(first, (8, 8)))[:2] == pytest.approx([1, 1])


def test_tiles_are_as_far_apart_in_their_stream_as_a_counter_can_be():
    row = numbers_of(2 * TILE, 3 * TILE)
    stream = generator(0, "embedding")
    stream.bit_generator.advance(4 << 128)
    assert (row[TILE:, TILE : 2 * TILE] == stream.standard_normal((TILE, TILE))).all()


def test_a_matrix_of_one_tile_is_as_in_version_0_1_0_and_a_larger_one_is_not():
    one, more = matrix(TILE, TILE), matrix(TILE, TILE + 1)
    assert (initial_value(one, 1, "float32") == initial_value(one, 1, "float32", "whole")).all()
    assert (initial_value(more, 1, "float32") != initial_value(more, 1, "float32", "whole")).mean() > 0.9


def test_weights_by_name_are_each_parameters():
    config = small(num_tokens=300)
    for draw in initial.DRAWS:
        weights = initial_weights(config, 2, "bfloat16", draw)
        assert list(weights) == list(parameters(config))
        for name, row in parameters(config).items():
            assert weights[name].tobytes() == initial_value(row, 2, "bfloat16", draw).tobytes()


@pytest.mark.parametrize("draw", ["", "tile", None])
def test_a_draw_that_there_is_not_is_refused(draw):
    with pytest.raises(ConfigError) as raised:
        initial_value(matrix(3, 4), 0, "float32", draw)
    assert_explains(raised, "draw must be one of tiles, whole", f"draw={draw!r}", "Choose one")
