"""Faults put into one block, or everywhere, of a wing, written in that wing's own framework.

A fault replaces one piece of the program by a function of our own; `explain.causes` has no part in it.
Blocks of the JAX wing run in a scan, which traces one block for all: here the scan is written out, so that
each block can be another program.

Letters: n sequence, d dim, h heads, e dim_head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from support import attend_with_bias, bias_of

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

    def run(self, piece: str, right: Callable[..., Any], *given: Any) -> Any:
        for fault in self.faults:
            if fault.piece == piece and fault.layer in (None, self.layer):
                return fault.wrong(self.lib, right, *given)
        return right(*given)


@contextmanager
def injected(wing: str, *faults: Fault) -> Iterator[None]:
    """As long as the block lasts, models of that wing have these faults."""
    if wing == "jax":
        jax.clear_caches()  # what is compiled already would not see them
    try:
        with pytest.MonkeyPatch.context() as patch:
            program = _Program(wing, faults)
            _patch_shared(wing, program, patch)
            (_patch_torch if wing == "torch" else _patch_jax)(program, patch)
            yield
    finally:
        if wing == "jax":
            jax.clear_caches()


def module(wing: str, name: str) -> Any:
    return import_module(f"palm.{wing}_impl.{name}")


def _patch_shared(wing: str, at: _Program, patch: pytest.MonkeyPatch) -> None:
    attention, feedforward, block = (module(wing, name) for name in ("attention", "feedforward", "block"))
    rotate, blockwise, swiglu = attention.rotate, attention.ATTENTION["blockwise"], feedforward.swiglu
    activations = block.Block.activations

    def rotated(x: Any, rotation: Any) -> Any:
        # Faults are written for (..., n, e), where the model has a head axis between the two in queries.
        def turned(x: Any) -> Any:
            return x.swapaxes(-2, -3) if rotation[0].ndim == 3 else x

        config = at.block.attention.config
        return turned(at.run("rotate", lambda x, _: turned(rotate(turned(x), rotation)), turned(x), config))

    impl = import_module(f"palm.{wing}_impl")

    def attended(q: Any, k: Any, v: Any, slopes: Any) -> Any:
        if all(fault.piece != "attend" for fault in at.faults):
            return blockwise(q, k, v, slopes)
        bias = None if slopes is None else bias_of(impl, slopes, q.shape[-3])
        out = at.run(
            "attend",
            lambda q, k, v, bias, _: attend_with_bias(impl, q, k, v, bias),
            *(q.swapaxes(-2, -3), k, v, bias, at.block.attention.config),
        )
        return out.swapaxes(-2, -3)

    def of_block(self: Any, x: Any, *positions: Any) -> dict[str, Any]:
        if wing == "torch":
            at.layer = self.index
        at.block = self
        taps = activations(self, x, *positions)
        taps["out"] = at.run("residual", lambda x, taps: taps["out"], x, taps)
        at.layer = self.attention.config.depth
        return taps

    patch.setattr(attention, "rotate", rotated)
    patch.setitem(attention.ATTENTION, "blockwise", attended)
    patch.setattr(feedforward, "swiglu", lambda a, b: at.run("gated", swiglu, a, b))
    patch.setattr(block.Block, "activations", of_block)


def _patch_torch(at: _Program, patch: pytest.MonkeyPatch) -> None:
    model, norm = module("torch", "model").PaLM, module("torch", "norm").Norm
    forward, linear, lookup, built = (
        norm.forward,
        module("torch", "linear").Linear.forward,
        torch.nn.Embedding.forward,
        model.__init__,
    )

    def init(self: Any, config: Any, **options: Any) -> None:
        built(self, config, **options)
        for i, block in enumerate(self.blocks):
            block.index = i
            for part, names in ((block.attention, ATTENTION), (block.feedforward, FEEDFORWARD)):
                for name in names:
                    if hasattr(part, name):
                        getattr(part, name).role = name

    def normed(self: Any, x: Any) -> Any:
        return at.run("norm", lambda x, *_: forward(self, x), x, self.weight, self.config)

    def product(self: Any, x: Any) -> Any:
        part, names = (
            (at.block.attention, ATTENTION) if self.role in ATTENTION else (at.block.feedforward, FEEDFORWARD)
        )
        matrices = {name: getattr(part, name).weight.T for name in names if hasattr(part, name)}
        return at.run("product", lambda *_: linear(self, x), self.role, x, self.weight.T, matrices)

    def logits(self: Any, y: Any) -> Any:
        tied = self.config.tie_embeddings
        matrix = (self.embedding if tied else self.unembedding).weight.T
        return at.run("logits", lambda y, w, config: y @ w * config.logit_scale, y, matrix, self.config)

    def embedded(self: Any, ids: Any) -> Any:
        return at.run("embed", lambda ids, _: lookup(self, ids), ids, self.weight)

    patch.setattr(model, "__init__", init)
    patch.setattr(norm, "forward", normed)
    patch.setattr(module("torch", "linear").Linear, "forward", product)
    patch.setattr(torch.nn.Embedding, "forward", embedded)
    patch.setattr(model, "logits", logits)


def _patch_jax(at: _Program, patch: pytest.MonkeyPatch) -> None:
    models, norm = module("jax", "model"), module("jax", "norm").Norm
    call, embed = norm.__call__, models._embed
    parts = {
        module("jax", "attention").Attention: ATTENTION,
        module("jax", "feedforward").FeedForward: FEEDFORWARD,
    }

    def scan(step: Callable[..., Any], x: Any, blocks: Any) -> tuple[Any, Any]:
        given = []
        for i in range(len(jax.tree.leaves(blocks)[0])):
            at.layer = i
            x, taps = step(x, jax.tree.map(lambda leaf, i=i: leaf[i], blocks))
            given.append(taps)
        return x, jax.tree.map(lambda *rows: jnp.stack(rows), *given)

    def normed(self: Any, x: Any) -> Any:
        return at.run("norm", lambda x, *_: call(self, x), x, self.weight, self.config)

    def logits(self: Any, y: Any) -> Any:
        matrix = self.embedding.T if self.config.tie_embeddings else self.unembedding
        return at.run("logits", lambda y, w, config: y @ w * config.logit_scale, y, matrix, self.config)

    def embedded(model: Any, ids: Any) -> Any:
        return at.run("embed", lambda ids, _: embed(model, ids), ids, model.embedding)

    for part, names in parts.items():
        _patch_products(part, names, at, patch)
        patch.setattr(import_module(part.__module__), "linear", lambda x, matrix: matrix.product(x))
    patch.setattr(models, "lax", SimpleNamespace(scan=scan))
    patch.setattr(norm, "__call__", normed)
    patch.setattr(models.PaLM, "logits", logits)
    patch.setattr(models, "_embed", embedded)


class _Matrix:
    """Stands for an array where `linear` takes one, and says what the product is."""

    def __init__(self, product: Callable[[Any], Any]) -> None:
        self.product = product


def _patch_products(part: Any, names: tuple[str, ...], at: _Program, patch: pytest.MonkeyPatch) -> None:
    right, linear = part.activations, module("jax", "linear").linear

    def activations(self: Any, *given: Any) -> Any:
        matrices = {name: getattr(self, name) for name in names if getattr(self, name) is not None}

        def matrix(name: str) -> _Matrix:
            w = matrices[name]
            return _Matrix(lambda x: at.run("product", lambda *_: linear(x, w), name, x, w, matrices))

        return right(dataclasses.replace(self, **{name: matrix(name) for name in matrices}), *given)

    patch.setattr(part, "activations", activations)


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
