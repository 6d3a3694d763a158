"""What a training step needs of each device's memory, by formulas: no compiler and no framework.

Bytes a device. P is a device's share of the parameters by the table `palm.spec.mesh.cuts`. Of b sequences
that a device has in a micro-batch, of n tokens each, all values of a position count b·n times. c is the size
of a number in the computing precision, w in float32 or wider, a in the dtype of the weights. d, i, f, v, h
are dim, heads·dim_head, ff_mult·dim, num_tokens and heads, each divided by `model` where that cuts it; D is
the whole dim, e is dim_head, l the number of blocks.

    weights    a·P
    moments    2·a·P
    gradients  a·P, and with accumulation twice that: a sum, and those of one micro-batch
    copies     c·P, if the weights are not in the computing precision
    a block    S = 3·w·d + c·D + 2·c·i + 2·c·e + w·h + 4·c·f a position: the norm's three, its output, queries
               and attended, keys and values, log-sums, and gate, swish, up and product
    stored     l·S; without its 4·c·f if the feed-forward is computed again; l·c·d, its input, if blocks are
    block      while a block runs backwards, what of S is computed again, S of gradients, and 3·w·D, of which
               the gradient of the norm's output is the sum; and where `data` cuts it, 2·c + w for each of the
               block's weights, whole in `data`: those in use, the next, and a gradient to be shared out
    logits     3·w for each number of b·n·v, of MOST_LOGITS at most: logits, softmax and gradient, which
               `model` cuts also if it does not divide v; and where `data` cuts it, the output matrix whole in
               `data`, and its gradient: (c + w)·D·v

Attention is not the textbook's, which keeps n² scores. A step needs the sum, of `block` and `logits` only
the larger one: the loss is done before the first block runs backwards. The state is exact. The rest is what
is needed; a compiler orders work for speed and takes more or less (tests/parity/training/test_footprint.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from palm.config import DType, PaLMConfig
from palm.recipes import Recipe
from palm.spec.mesh import Mesh, cuts, piece, ways
from palm.spec.parameters import numpy_dtype, parameters
from palm.spec.sizes import describe

# As `palm.torch_impl.loss.MOST_LOGITS` and `palm.jax_impl.loss.MOST_LOGITS`.
MOST_LOGITS = 1 << 25


@dataclass(frozen=True)
class Footprint:
    """Bytes of one device that a training step needs, by what they are for."""

    weights: int
    """The master copy."""
    moments: int
    """The optimizer's two."""
    gradients: int
    """Of all weights."""
    copies: int
    """The weights in the computing precision."""
    stored: int
    """What the forward pass leaves for the backward pass."""
    block: int
    """What one block needs while it runs backwards, beyond what is stored."""
    logits: int
    """What the output layer and the loss need."""

    @property
    def state(self) -> int:
        """Weights and moments: what is there between steps."""
        return self.weights + self.moments

    @property
    def total(self) -> int:
        """All of it at the worst moment of a step."""
        at_once = self.state + self.gradients + self.copies + self.stored
        return at_once + max(self.block, self.logits)

    def to_dict(self) -> dict[str, int]:
        """The bytes by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def footprint(config: PaLMConfig, recipe: Recipe, mesh: Mesh, dtype: DType = "float32") -> Footprint:
    """Of a resolved config whose weights are in `dtype`, at the recipe's largest batch.

    Sequences that do not divide count as whole ones. Raises `ConfigError` if the config is not resolved.
    """
    a, c = numpy_dtype(dtype).itemsize, numpy_dtype(recipe.precision).itemsize
    of_block, others = own_numbers(config, mesh)
    own = config.depth * of_block + sum(others)
    block, logits, stored = _activations(config, recipe, mesh)
    if mesh.data > 1:
        gathered, outside = own_numbers(config, Mesh(model=mesh.model))
        block += (2 * c + max(4, c)) * gathered
        logits += (c + max(4, c)) * max(outside)
    return Footprint(
        weights=a * own,
        moments=2 * a * own,
        gradients=a * own * (2 if recipe.accumulate > 1 else 1),
        copies=c * own if c < a else 0,
        stored=stored,
        block=block,
        logits=logits,
    )


def cache_bytes(config: PaLMConfig, recipe: Recipe, mesh: Mesh) -> int:
    """Bytes of a device for keys and values, in bfloat16, of the sequences that it has of a batch.

    There is one key head, so `model` does not cut them. With l blocks: 2·l·b·n·2·e, or half of that where
    keys are values.
    """
    return describe(config).cache_bytes * -(-largest_batch(recipe) // mesh.replicas) * recipe.length


def largest_batch(recipe: Recipe) -> int:
    """The largest of a recipe's batch sizes."""
    return max([recipe.batch, *(size for _, size in recipe.ramp)])


def own_numbers(config: PaLMConfig, mesh: Mesh) -> tuple[int, list[int]]:
    """How many numbers a device has of the parameters of one block, and of each parameter in none."""
    one = replace(config, depth=1)
    cut, of_block, others = cuts(one, mesh), 0, []
    for name, row in parameters(one).items():
        size = math.prod(piece(cut[name], row.shape, mesh))
        if name.startswith("blocks."):
            of_block += size
        else:
            others.append(size)
    return of_block, others


def _activations(config: PaLMConfig, recipe: Recipe, mesh: Mesh) -> tuple[int, int, int]:
    """`block`, `logits` and `stored` of one micro-batch, without weights that are gathered."""
    c = numpy_dtype(recipe.precision).itemsize
    w = max(4, c)
    positions = recipe.length * -(-largest_batch(recipe) // (recipe.accumulate * mesh.replicas))
    d = config.dim // (mesh.model if config.dim % mesh.model == 0 else 1)
    by_heads = ways(config, mesh, "heads")
    feedforward = 4 * c * config.ff_dim // ways(config, mesh, "ff")
    attention = 2 * c * (config.inner_dim // by_heads + config.dim_head) + w * config.heads // by_heads
    whole = 3 * w * d + c * config.dim + attention + feedforward
    kept = {True: c * d, "feedforward": whole - feedforward, False: whole}[recipe.remat]
    again = {True: whole, "feedforward": feedforward, False: 0}[recipe.remat]
    logits = positions * -(-config.num_tokens // mesh.model)
    return (
        positions * (again + whole + 3 * w * config.dim),
        3 * w * min(logits, MOST_LOGITS),
        positions * config.depth * kept,
    )
