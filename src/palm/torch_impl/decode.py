"""One decoding step of the torch wing, from weights laid out for it.

A step reads every weight once to multiply a few rows, so memory bandwidth is its limit: the matrices that
read the same vector are one, each lies in memory as it is read fastest, and int8 takes less of it.
Letters: b batch, n cached positions, d dim, h heads, e dim_head, f ff_mult·dim, v num_tokens.
Mirror: palm.jax_impl.decode.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from palm.config import PaLMConfig
from palm.torch_impl.block import Block
from palm.torch_impl.feedforward import swiglu
from palm.torch_impl.linear import product
from palm.torch_impl.model import PaLM
from palm.torch_impl.norm import Norm, unit, widen
from palm.torch_impl.position import Rotation, rotate
from palm.torch_impl.private import int8_matmul
from palm.torch_impl.shapes import Bias, Cache, Columns, Each, Packed, Rows, Step


@dataclass(frozen=True)
class Matrix:
    """A matrix as decoding reads it: floats, or int8 with a scale for each column of the result.

    w ≈ scale · round(w / scale), scale = max |w| / 127 over what forms one column.
    """

    values: Tensor
    scale: Tensor | None

    def multiply(self, x: Rows) -> Columns:
        """x wᵀ. Shapes: x (b, k), values (c, k), scale (c,) -> (b, c)."""
        if self.scale is None:
            return product(x, self.values.t())
        return int8_matmul(x, self.values, self.scale)


def pack(weight: Packed, weights: str | None) -> Matrix:
    """A weight (c, k) as it is, or with `weights="int8"` as int8."""
    if weights is None:
        # In float32 a wide one is read a fifth faster along its columns.
        turned = len(weight) > weight.shape[1] and weight.dtype == torch.float32
        return Matrix(weight.t().contiguous().t() if turned else weight.contiguous(), None)
    wide = widen(weight)
    scale = (wide.abs().amax(1) / 127).clamp(min=torch.finfo(wide.dtype).tiny)
    values = (wide / scale[:, None]).round().to(torch.int8)
    return Matrix(values.contiguous(), scale)


@dataclass(frozen=True)
class Layer:
    """A block with its matrices joined: query, key, value, gate and up in one; out and down in one."""

    config: PaLMConfig
    norm: Norm
    inward: Matrix
    outward: Matrix
    scales: Tensor | None
    """Of the norms of the query heads and of the key head, (h + 1, e)."""

    def step(
        self, x: Step, rotation: Rotation | None, bias: Bias, keys: Cache, values: Cache, rows: Each
    ) -> Step:
        """The block for one new token a sequence, whose key and value join the caches, in place.

        One key head: all query heads of a sequence meet its keys in one matrix product. `bias` is added to
        the scores: the mask, and ALiBi's term. Without a value cache of their own, keys are values.
        Shapes: x (b, d), rotation (b, 1 or h + 1, e/2), keys and values (b·n, e), rows of them that
        are new (b,), bias (b, 1 or h, n) -> (b, d).
        """
        config, e = self.config, self.config.dim_head
        widths = [config.inner_dim + e, *([] if config.share_kv else [e]), config.ff_dim, config.ff_dim]
        heads, *value, gate, up = self.inward.multiply(self.norm(x)).split(widths, -1)
        heads = heads.reshape(len(x), -1, e)
        v = value[0] if value else heads[:, -1]
        if self.scales is not None:
            heads = unit(heads, self.scales)
        if rotation is not None:
            heads = rotate(heads, rotation)
        q, k = heads[:, :-1], heads[:, -1]
        keys.index_copy_(0, rows, k.to(keys.dtype))  # autocast may have made it another
        if values is not keys:
            values.index_copy_(0, rows, v.to(values.dtype))
        k, v = (widen(cache).view(len(x), -1, e) for cache in (keys, values))
        weights = torch.baddbmm(bias, widen(q), k.mT, alpha=e**-0.5).softmax(-1)
        attended = torch.bmm(weights, v).to(x.dtype)
        return x + self.outward.multiply(torch.cat([attended.flatten(1), swiglu(gate, up)], -1))


def layers_of(model: PaLM, weights: str | None) -> list[Layer]:
    """The model's blocks, laid out for decoding."""
    layers = []
    for block in model.blocks:
        assert isinstance(block, Block)
        attention, feedforward = block.attention, block.feedforward
        shared = model.config.share_kv
        one_head = [attention.key_value] if shared else [attention.key, attention.value]
        matrices = [attention.query, *one_head, feedforward.gate, feedforward.up]
        inward = torch.cat([matrix.weight for matrix in matrices])
        outward = torch.cat([attention.out.weight, feedforward.down.weight], 1)
        scales = None
        if model.config.qk_norm:
            norms = [*[attention.query_norm] * model.config.heads, attention.key_norm]
            scales = torch.stack([norm.weight for norm in norms])
        packed = [pack(inward, weights), pack(outward, weights)]
        layers.append(Layer(model.config, block.norm, packed[0], packed[1], scales))
    return layers


def output_of(model: PaLM, weights: str | None) -> Matrix:
    """The output layer, laid out for decoding."""
    tied = model.config.tie_embeddings
    return pack((model.embedding if tied else model.unembedding).weight, weights)
