"""Initial weights, of which any part can be drawn by itself: the same bits on every mesh and in both wings.

A matrix is a grid of tiles of 64 × 64 elements, smaller ones at its ends. All of them use the stream of
Philox that belongs to (seed, name): tile k, counted row by row, has the numbers from counter k·2¹²⁸ on. Each
normal number takes an unknown count of a stream's, so a tile is the least that can be drawn. In version 0.1.0
each matrix was one tile, whatever its size: that draw is called "whole".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from palm.config import DType, PaLMConfig
from palm.fields import check_choice
from palm.spec.arrays import Arrays
from palm.spec.boxes import box_of
from palm.spec.parameters import Parameter, numpy_dtype, parameters
from palm.spec.random import generator

Draw = Literal["tiles", "whole"]
DRAWS: tuple[Draw, ...] = ("tiles", "whole")
# Who needs a part draws all tiles that it touches: small ones waste less. In much smaller ones the work for
# the tile itself would show.
TILE = 64


@dataclass(frozen=True)
class Initial:
    """The weight that `seed` gives `parameter`, of which a part is drawn when it is asked for.

    Drawn in float64, then cast to `dtype` by NumPy. Depends on (seed, name, shape, std) alone, so it is the
    same in both wings, on any mesh, and in any order of creation. Raises `ConfigError` for a draw that there
    is not and, once a part is asked for, for a seed or a dtype that there is not.
    """

    parameter: Parameter
    seed: int
    dtype: DType
    draw: Draw = "tiles"

    def __post_init__(self) -> None:
        check_choice("draw", self.draw, DRAWS)

    def __getitem__(self, at: tuple[slice, ...], /) -> np.ndarray:
        shape, std = self.parameter.shape, self.parameter.std
        box = box_of(at, shape)
        if std is None:
            return np.ones(box.shape, numpy_dtype(self.dtype))
        found = np.empty(box.shape, numpy_dtype(self.dtype))
        normal = generator(self.seed, self.parameter.name)
        stream = normal.bit_generator
        state = stream.state
        counter = state["state"]["counter"]  # four words of 64 bits, the lowest first
        sides = shape if self.draw == "whole" else (TILE, TILE)
        rows, columns = (list(_touched(*one)) for one in zip(*box, shape, sides, strict=True))
        across = -(-shape[1] // sides[1])
        for i, height, inside, place in rows:
            strip = found[place]
            for j, width, within, where in columns:
                counter[2] = i * across + j
                stream.state = state
                numbers = normal.standard_normal((height, width))
                np.multiply(numbers[inside, within], std, out=strip[:, where], casting="unsafe")
        return found


def _touched(first: int, count: int, size: int, side: int) -> Iterator[tuple[int, int, slice, slice]]:
    """The tiles along one dimension that a part touches: of each its number, its size, which of its elements
    are the part's, and where they are in it."""
    last = first + count
    for start in range(first - first % side, last, side):
        end = min(start + side, size)
        own = slice(max(first, start), min(last, end))
        yield (
            start // side,
            end - start,
            slice(own.start - start, own.stop - start),
            slice(own.start - first, own.stop - first),
        )


def initial_value(parameter: Parameter, seed: int, dtype: DType, draw: Draw = "tiles") -> np.ndarray:
    """The whole weight that `seed` gives a parameter. Raises what `Initial` raises."""
    return Initial(parameter, seed, dtype, draw)[tuple(slice(0, size) for size in parameter.shape)]


def initial_weights(config: PaLMConfig, seed: int, dtype: DType, draw: Draw = "tiles") -> Arrays:
    """All weights of a fresh model of a resolved config by name, as `palm.build` has them.

    `palm.from_numpy` and `palm.train` take them; with `draw="whole"` they are those of version 0.1.0.
    Raises what `Initial` raises, and `ConfigError` if the config is not resolved.
    """
    return {name: initial_value(row, seed, dtype, draw) for name, row in parameters(config).items()}
