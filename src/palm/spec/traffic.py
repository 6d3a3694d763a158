"""What the devices of a mesh must send one another in a training step, by formulas.

Bytes that each device receives in a micro-batch, in the letters of `palm.spec.footprint`. A collective in a
group of k devices gives each of them g(k) = (k−1)/k of the whole. B are the numbers of a block and V = D·v
those of the embedding, both whole in `data` and cut in `model`.

    gathered   weights, by data: 2·l·c·B, for the forward and for the backward pass, and 2·c·V, for the
               embedding and for the output; each times g(data)
               activations, by model: a block's input is cut in D, and gathered for its matrices; so is the
               gradient of its output; what is computed again gathers its input again. (2·l + 1)·c·D·b·n, or
               (3·l + 1)·c·D·b·n if blocks are computed again, times g(model)
    reduced    gradients, by data: c·(l·B + V), or 2·V with an output matrix of its own, times g(data); then
               by pod c·P twice, times g(pod)
               activations, by model: the output of a block, and the gradient of its input: (2·l + 1)·c·D·b·n,
               times g(model)

Where `data` does not cut the weights nothing of them is gathered, and their gradients count twice. Sums of a
few numbers a position are left out: of norms, softmax, and of the one head of keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from palm.config import PaLMConfig
from palm.recipes import Recipe
from palm.spec.footprint import largest_batch, own_numbers
from palm.spec.mesh import Mesh, ways
from palm.spec.parameters import numpy_dtype


@dataclass(frozen=True)
class Traffic:
    """Bytes that each device must receive in a step."""

    gathered: int
    """By all-gathers: weights along `data`, activations along `model`."""
    reduced: int
    """By reduce-scatters: gradients along `data`, activations along `model`; by all-reduces along `pod`."""


def traffic(config: PaLMConfig, recipe: Recipe, mesh: Mesh) -> Traffic:
    """Of a resolved config, at the recipe's largest batch."""
    c, depth = numpy_dtype(recipe.precision).itemsize, config.depth
    of_block, outside = own_numbers(config, replace(mesh, pod=1, data=1))
    embedding, output = max(outside), 2 if config.tie_embeddings else 1
    by_data, by_model, by_pod = (Fraction(k - 1, k) for k in (mesh.data, mesh.model, mesh.pod))
    is_cut = ways(config, mesh, "embed") > 1
    positions = recipe.length * -(-largest_batch(recipe) // (recipe.accumulate * mesh.replicas))
    stream = c * config.dim * positions * by_model
    again = depth if recipe.remat is True else 0
    weights = 2 * c * (depth * of_block + embedding) * by_data if is_cut else 0
    gradients = c * (depth * of_block + (3 - output) * embedding) * by_data * (1 if is_cut else 2)
    own, rest = own_numbers(config, mesh)
    gradients += 2 * c * (depth * own + sum(rest)) * by_pod
    return Traffic(
        gathered=int(recipe.accumulate * (weights + (2 * depth + again + 1) * stream)),
        reduced=int(recipe.accumulate * (gradients + (2 * depth + 1) * stream)),
    )
