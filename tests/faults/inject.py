"""Faults put into one block, or everywhere, of a wing, written in that wing's own framework.

A fault replaces one piece of the program by a function of our own; `explain.causes` has no part in it.
Each block can be another program, because models of moderate depth have their blocks written out.

Letters: n sequence, d dim, h heads, e dim_head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from support import attend_with_bias, bias_of

from palm.spec.taps import BLOCK_TAPS, untapped

LIBRARIES = {"torch": torch, "jax": jnp}
ATTENTION = ("query", "key_value", "key", "value", "out")
FEEDFORWARD = ("up", "gate", "down")


@dataclasses.dataclass(frozen=True)
class Fault:
    """`wrong` stands for `piece` in block `layer`, or, if that is None, everywhere.

    Block `depth` is the last norm. What each piece is given, after the library and the piece as it should be:

    - norm: x, its scale, config -> y
    - product: name of the matrix, x, the matrix (in, out), all matrices of this part -> x times the matrix
    - rotate: x (..., n, e), config -> x turned
    - attend: q (..., h, n, e), k, v (..., n, e), bias, config -> (..., h, n, e)
    - gated: gate, up -> their product
    - residual: x, the taps of the block -> out
    - embed: ids, the embedding -> x
    - logits: y, the (d, v) matrix, config -> logits
    """

    piece: str
    layer: int | None
    wrong: Callable[..., Any]


class _Program:
    """Where the program is, and what is wrong there."""

    def __init__(self, wing: str, faults: tuple[Fault, ...]) -> None:
        self.lib, self.faults, self.layer = LIBRARIES[wing], faults, -1
        self.block: Any = None
        self.config: Any = None

    def run(self, piece: str, right: Callable[..., Any], *given: Any) -> Any:
        for fault in self.faults:
            if fault.piece == piece and fault.layer in (None, self.layer):
                return fault.wrong(self.lib, right, *given)
        return right(*given)

    def start(self, config: Any) -> None:
        """A pass begins: the next block is the first."""
        self.config, self.layer = config, -1

    def role(self, linear: Any) -> tuple[str, dict[str, Any]]:
        """The name of a matrix of the block that runs, and all matrices (in, out) of its part."""
        for part, names in ((self.block.attention, ATTENTION), (self.block.feedforward, FEEDFORWARD)):
            layers = {name: getattr(part, name, None) for name in names}
            matrices = {name: matrix_of(layer) for name, layer in layers.items() if layer is not None}
            for name, layer in layers.items():
                if layer is linear:
                    return name, matrices
        raise AssertionError("a matrix of no block")


@contextmanager
def injected(wing: str, *faults: Fault) -> Iterator[None]:
    """As long as the block lasts, models of that wing have these faults."""
    if wing == "jax":
        jax.clear_caches()  # what is compiled already would not see them
    try:
        with pytest.MonkeyPatch.context() as patch:
            program = _Program(wing, faults)
            _patch_block(wing, program, patch)
            _patch_attention(wing, program, patch)
            _patch_layers(wing, program, patch)
            _patch_ends(wing, program, patch)
            yield
    finally:
        if wing == "jax":
            jax.clear_caches()


def module(wing: str, name: str) -> Any:
    return import_module(f"palm.{wing}_impl.{name}")


def matrix_of(linear: Any) -> Any:
    """The weight (in, out) of a Linear of either wing."""
    return linear.weight.T if isinstance(linear, torch.nn.Module) else linear.weight


def _call(wing: str) -> str:
    return "forward" if wing == "torch" else "__call__"


def _patch_block(wing: str, at: _Program, patch: pytest.MonkeyPatch) -> None:
    block = module(wing, "block").Block
    right = getattr(block, _call(wing))

    def of_block(
        self: Any,
        x: Any,
        rotation: Any,
        slopes: Any,
        segments: Any = None,
        remat: Any = False,
        tap: Any = untapped,
    ) -> Any:
        at.layer, at.block = at.layer + 1, self
        assert at.layer < at.config.depth
        taps = {}

        def keep(name: str, value: Any) -> Any:
            taps[name] = value
            return tap(name, at.run("residual", lambda x, taps: value, x, taps) if name == "out" else value)

        y, index = right(self, x, rotation, slopes, segments, remat, keep), at.layer
        assert list(taps) == list(BLOCK_TAPS)
        # Behind the last block stands the last norm.
        at.layer = at.config.depth if index + 1 == at.config.depth else index
        return y

    patch.setattr(block, _call(wing), of_block)


def _patch_attention(wing: str, at: _Program, patch: pytest.MonkeyPatch) -> None:
    attention, feedforward = (module(wing, name) for name in ("attention", "feedforward"))
    rotate, blockwise, swiglu = attention.rotate, attention.ATTENTION["blockwise"], feedforward.swiglu
    impl = import_module(f"palm.{wing}_impl")

    def rotated(x: Any, rotation: Any) -> Any:
        # Faults are written for (..., n, e), where the model has a head axis between the two in queries.
        def turned(x: Any) -> Any:
            return x.swapaxes(-2, -3) if rotation[0].ndim == 3 else x

        return turned(
            at.run("rotate", lambda x, _: turned(rotate(turned(x), rotation)), turned(x), at.config)
        )

    def attended(q: Any, k: Any, v: Any, slopes: Any, segments: Any) -> Any:
        if all(fault.piece != "attend" for fault in at.faults):
            return blockwise(q, k, v, slopes, segments)
        bias = None if slopes is None else bias_of(impl, slopes, q.shape[-3])
        out = at.run(
            "attend",
            lambda q, k, v, bias, _: attend_with_bias(impl, q, k, v, bias),
            *(q.swapaxes(-2, -3), k, v, bias, at.config),
        )
        return out.swapaxes(-2, -3)

    patch.setattr(attention, "rotate", rotated)
    patch.setitem(attention.ATTENTION, "blockwise", attended)
    patch.setattr(feedforward, "swiglu", lambda a, b: at.run("gated", swiglu, a, b))


def _patch_layers(wing: str, at: _Program, patch: pytest.MonkeyPatch) -> None:
    norm, linear = module(wing, "norm").Norm, module(wing, "linear").Linear
    norm_right, linear_right = (getattr(layer, _call(wing)) for layer in (norm, linear))

    def normed(self: Any, x: Any) -> Any:
        # The one norm of a block comes first in it, that behind all blocks after `of_block` has ended.
        return at.run("norm", lambda x, *_: norm_right(self, x), x, self.weight, at.config)

    def product(self: Any, x: Any) -> Any:
        name, matrices = at.role(self)
        return at.run("product", lambda *_: linear_right(self, x), name, x, matrices[name], matrices)

    patch.setattr(norm, _call(wing), normed)
    patch.setattr(linear, _call(wing), product)


def _patch_ends(wing: str, at: _Program, patch: pytest.MonkeyPatch) -> None:
    models = module(wing, "model")
    embedding = torch.nn.Embedding if wing == "torch" else models.Embedding
    right, positions = getattr(embedding, _call(wing)), models.PaLM.positions

    def embedded(self: Any, ids: Any) -> Any:
        return at.run("embed", lambda ids, _: right(self, ids), ids, self.weight)

    def started(self: Any, length: int, x: Any) -> Any:
        at.start(self.config)
        return positions(self, length, x)

    def logits(self: Any, y: Any) -> Any:
        assert at.layer == self.config.depth  # a scan would have traced one block for all
        tied = self.config.tie_embeddings
        matrix = self.embedding.weight.T if tied else matrix_of(self.unembedding)
        return at.run("logits", lambda y, w, config: y @ w * config.logit_scale, y, matrix, self.config)

    patch.setattr(embedding, _call(wing), embedded)
    patch.setattr(models.PaLM, "positions", started)
    patch.setattr(models.PaLM, "logits", logits)


def wide(x: Any) -> Any:
    """x in float32, or in its own type if that is wider."""
    if isinstance(x, torch.Tensor):
        return x.to(torch.promote_types(x.dtype, torch.float32))
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def cast(x: Any, dtype: Any) -> Any:
    return x.to(dtype) if isinstance(x, torch.Tensor) else x.astype(dtype)


def bfloat16(lib: Any, x: Any) -> Any:
    """x rounded to bfloat16, in its own type."""
    return cast(cast(x, lib.bfloat16), x.dtype)


def constant(lib: Any, array: np.ndarray, like: Any) -> Any:
    """A NumPy array of reals as one of the library's, at least as wide as `like` and float32."""
    return (
        torch.as_tensor(array, dtype=wide(like).dtype)
        if lib is torch
        else jnp.asarray(array, wide(like).dtype)
    )


def truth(lib: Any, array: np.ndarray) -> Any:
    """A NumPy array of truths as one of the library's."""
    return torch.as_tensor(array) if lib is torch else jnp.asarray(array)
