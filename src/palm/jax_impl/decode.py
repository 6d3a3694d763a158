"""One decoding step of the JAX wing, from weights laid out for it.

A step reads every weight once to multiply a few rows, so memory bandwidth is its limit: the matrices that
read the same vector are one, each lies in memory as it is read fastest, and int8 takes less of it.
Letters: b batch, n cached positions, d dim, h heads, e dim_head, f ff_mult·dim, v num_tokens.
Mirror: palm.torch_impl.decode.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, lax

from palm.config import PaLMConfig
from palm.jax_impl.feedforward import swiglu
from palm.jax_impl.linear import product
from palm.jax_impl.model import PaLM
from palm.jax_impl.norm import Norm, unit, widen
from palm.jax_impl.position import Rotation, rotate
from palm.jax_impl.shapes import Bias, Cache, Columns, Each, Packed, Rows, Step
from palm.jax_impl.sharding import spread


class Matrix(eqx.Module):
    """A matrix as decoding reads it: floats, or int8 with a scale for each column of the result.

    w ≈ scale · round(w / scale), scale = max |w| / 127 over what forms one column.
    """

    values: Array
    scale: Array | None
    turned: bool = eqx.field(static=True)

    def multiply(self, x: Rows) -> Columns:
        """x wᵀ. Shapes: x (b, k), values (c, k) or turned (k, c), scale (c,) -> (b, c)."""
        values = self.values if self.scale is None else self.values.astype(x.dtype)
        result = product(x.astype(values.dtype), values, (1, 0 if self.turned else 1))
        return (result if self.scale is None else result * self.scale).astype(x.dtype)


def pack(weight: Packed, weights: str | None, batch: int, platform: str) -> Matrix:
    """A weight (c, k) as it is, or with `weights="int8"` as int8, to multiply `batch` rows on `platform`."""
    # XLA's products on a CPU: more rows than one are multiplied in two thirds of the time with the weight
    # turned, and in bfloat16 a few rows take eight times as long as in float32.
    weight, on_cpu = spread(weight), platform == "cpu"
    turned = on_cpu and batch > 1
    if weights is None:
        values, scale = widen(weight) if on_cpu else weight, None
    else:
        wide = widen(weight)
        scale = jnp.maximum(jnp.abs(wide).max(1) / 127, jnp.finfo(wide.dtype).tiny)
        values = jnp.round(wide / scale[:, None]).astype(jnp.int8)
    return Matrix(values.T if turned else values, scale, turned)


class Layer(eqx.Module):
    """A block with its matrices joined: query, key, value, gate and up in one; out and down in one."""

    config: PaLMConfig = eqx.field(static=True)
    norm: Norm
    inward: Matrix
    outward: Matrix
    scales: Array | None
    """Of the norms of the query heads and of the key head, (h + 1, e)."""

    def step(
        self,
        x: Step,
        rotation: Rotation | None,
        bias: Bias,
        keys: Cache,
        values: Cache | None,
        rows: Each,
    ) -> tuple[Step, Cache, Cache | None]:
        """The block for one new token a sequence, whose key and value join the caches; and the caches.

        One key head: all query heads of a sequence meet its keys in one matrix product. `bias` is added to
        the scores: the mask, and ALiBi's term. Without a value cache of their own, keys are values.
        The caches have two dimensions because XLA would else copy them, to turn three into two.
        Shapes: x (b, d), rotation (b, 1 or h + 1, e/2), keys and values (b·n, e), rows of them that
        are new (b,), bias (b, 1 or h, n) -> (b, d), the caches.
        """
        config, e = self.config, self.config.dim_head
        widths = [config.inner_dim + e, *([] if config.share_kv else [e]), config.ff_dim, config.ff_dim]
        heads, *value, gate, up = lax.split(self.inward.multiply(self.norm(x)), widths, axis=1)
        heads = heads.reshape(len(x), -1, e)
        v = value[0] if value else heads[:, -1]
        if self.scales is not None:
            heads = unit(heads, self.scales)
        if rotation is not None:
            heads = rotate(heads, rotation)
        q, k = heads[:, :-1], heads[:, -1]
        keys = keys.at[rows].set(k)
        values = None if values is None else values.at[rows].set(v)
        k, v = (widen(cache).reshape(len(x), -1, e) for cache in (keys, keys if values is None else values))
        attended = jax.nn.softmax((widen(q) * e**-0.5) @ k.mT + bias, -1) @ v
        joined = jnp.concatenate([attended.astype(x.dtype).reshape(len(x), -1), swiglu(gate, up)], -1)
        return x + self.outward.multiply(joined), keys, values


def layers_of(model: PaLM, weights: str | None, batch: int, platform: str) -> list[Layer]:
    """The model's blocks, laid out for decoding `batch` sequences on `platform`."""
    layers = []
    for i in range(model.config.depth):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], model.blocks)
        attention, feedforward = block.attention, block.feedforward
        own = (attention.query, attention.key_value, attention.key, attention.value)
        matrices = [*own, feedforward.gate, feedforward.up]
        inward = jnp.concatenate([matrix.weight.T for matrix in matrices if matrix is not None])
        outward = jnp.concatenate([attention.out.weight, feedforward.down.weight]).T
        packed = [pack(matrix, weights, batch, platform) for matrix in (inward, outward)]
        scales = None
        if model.config.qk_norm:
            norms = [*[attention.query_norm] * model.config.heads, attention.key_norm]
            scales = jnp.stack([norm.weight for norm in norms])
        layers.append(Layer(model.config, block.norm, packed[0], packed[1], scales))
    return layers


def output_of(model: PaLM, weights: str | None, batch: int, platform: str) -> Matrix:
    """The output layer, laid out for decoding `batch` sequences on `platform`."""
    output = model.unembedding
    weight = model.embedding.weight if output is None else output.weight.T
    return pack(weight, weights, batch, platform)
